// Package tpm gives tests a real software TPM: swtpm, in a process of its own
// for each test, with an endorsement key that a CA of the test certifies.
package tpm

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// Software is a running swtpm.
type Software struct {
	Dir    string // its state
	Socket string // its data socket; the control socket has .ctrl appended
	cmd    *exec.Cmd
}

// Start starts an swtpm on an empty state and ends it with the test.
func Start(t testing.TB) *Software {
	t.Helper()
	// The path of a Unix socket has 107 bytes at most, and those of the
	// tests' own folders are long.
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Software{Dir: dir, Socket: filepath.Join(dir, "s")}
	if err := s.Power(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Cut)
	return s
}

// Fork starts another swtpm on a copy of the state: a board like this one, from
// here on.
func (s *Software) Fork(t testing.TB) *Software {
	t.Helper()
	state, err := os.ReadFile(filepath.Join(s.Dir, permanentState))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, permanentState), state, 0o600); err != nil {
		t.Fatal(err)
	}
	fork := &Software{Dir: dir, Socket: filepath.Join(dir, "s")}
	if err := fork.Power(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fork.Cut)
	return fork
}

// permanentState is the file that swtpm keeps what survives a power cut in.
const permanentState = "tpm2-00.permall"

// Permanent is what the TPM keeps without power.
func (s *Software) Permanent() ([]byte, error) {
	return os.ReadFile(filepath.Join(s.Dir, permanentState))
}

// Restore gives a TPM that has no power what another one has kept.
func (s *Software) Restore(permanent []byte) error {
	return os.WriteFile(filepath.Join(s.Dir, permanentState), permanent, 0o600)
}

// Power starts the swtpm on its state, as a board's power does.
func (s *Software) Power() error {
	os.Remove(s.Socket)
	os.Remove(s.Socket + ".ctrl")
	s.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+s.Dir,
		"--server", "type=unixio,path="+s.Socket, "--ctrl", "type=unixio,path="+s.Socket+".ctrl",
		"--flags", "not-need-init,startup-clear")
	// It tells of every connection that ends.
	log, err := os.Create(filepath.Join(s.Dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd.Stderr = log
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("cannot start swtpm: %w", err)
	}
	// It listens some milliseconds after its start, and says so to nobody.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		c, err := net.Dial("unix", s.Socket)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(end) {
			s.Cut()
			said, _ := os.ReadFile(log.Name())
			return fmt.Errorf("swtpm does not listen on %s: %w: %s", s.Socket, err, said)
		}
	}
}

// Cut cuts the power: kill -9, nothing is shut down in order.
func (s *Software) Cut() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s.cmd = nil
}

// Reboot cuts the power and gives it back.
func (s *Software) Reboot(t testing.TB) {
	t.Helper()
	s.Cut()
	if err := s.Power(); err != nil {
		t.Fatal(err)
	}
}

// Device is the value of [tpm] device for this TPM.
func (s *Software) Device() string { return "unix:" + s.Socket }

// TCTI is how tpm2-tools and libtpm2_pkcs11 reach this TPM.
func (s *Software) TCTI() string { return "swtpm:path=" + s.Socket }

// Open opens the TPM for a test's own commands.
func (s *Software) Open(t testing.TB) transport.TPMCloser {
	t.Helper()
	c, err := linuxudstpm.Open(s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// State is a digest of the TPM's permanent state: two that are equal say that
// nothing persistent was written in between.
func (s *Software) State(t testing.TB) string {
	t.Helper()
	f, err := os.Open(filepath.Join(s.Dir, permanentState))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := bufio.NewReader(f).WriteTo(h); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}
