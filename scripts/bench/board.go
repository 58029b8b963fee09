package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-tpm/tpm2"
)

// What the board says of itself, to both contenders.
const (
	boardModel  = "tpm2cloud bench"
	boardSerial = "BENCH-0001"
	boardMAC    = "02:00:00:00:00:01"
)

// tpmSocket is the proxy's path below a board's root. It is short because the
// whole of it must not be longer than 107 bytes (unix(7)).
const tpmSocket = "/tpm"

// board is a device as it leaves the factory, for one run: a TPM that nobody
// has used and an empty root directory.
type board struct {
	dir, root string
	tpm       *software
	proxy     *Proxy
}

func newBoard(ctx context.Context, v *vendor, dir string) (*board, error) {
	b := &board{dir: dir, root: filepath.Join(dir, "root")}
	if err := os.MkdirAll(b.root, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make a board: %w", err)
	}
	if err := v.copyState(b.state()); err != nil {
		return nil, err
	}
	return b, b.powerOn(ctx)
}

func (b *board) state() string { return filepath.Join(b.dir, "state") }

// powerOn starts the TPM and does what firmware does before any system runs: it
// measures something. The TPM notes then, once for each boot, that it was not
// shut down in order, and it is not a program's doing that this is written.
func (b *board) powerOn(ctx context.Context) error {
	var err error
	if b.tpm, err = startSoftware(ctx, b.state(), filepath.Join(b.dir, "s")); err != nil {
		return err
	}
	if b.proxy, err = StartProxy(b.root+tpmSocket, b.tpm.socket); err != nil {
		b.tpm.stop()
		return err
	}
	_, err = tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: 0, Auth: tpm2.PasswordAuth(nil)},
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
			{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, sha256.Size)},
		}},
	}.Execute(b.proxy)
	if err != nil {
		b.powerOff()
		return fmt.Errorf("cannot start the board: %w", err)
	}
	return nil
}

// reboot shuts the TPM down in order, as the kernel does, and starts it again.
func (b *board) reboot(ctx context.Context) error {
	_, err := tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(b.proxy)
	if err != nil {
		return fmt.Errorf("cannot reboot the board: %w", err)
	}
	b.powerOff()
	return b.powerOn(ctx)
}

func (b *board) powerOff() {
	b.proxy.Close()
	b.tpm.stop()
}
