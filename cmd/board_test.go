package cmd

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/device"
	"github.com/tpm2cloud/tpm2cloud/pkg/idevid"
	"github.com/tpm2cloud/tpm2cloud/pkg/ldevid"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/fault"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// board is a device with a root file system of its own.
type board struct {
	tpm  *tpmkit.Software
	root string
	cfg  *config.Config
}

// manufactured are a vendor and a TPM of his that nobody has used yet.
func manufactured(t *testing.T) (*tpmkit.Vendor, *tpmkit.Software) {
	t.Helper()
	vendor := tpmkit.NewVendor(t)
	factory := tpmkit.Start(t)
	factory.Manufacture(t, vendor)
	factory.Cut()
	return vendor, factory
}

// newBoard puts a TPM on a new board, whose CAs are in files.
func newBoard(t *testing.T, s *tpmkit.Software, vendor *tpmkit.Vendor) *board {
	t.Helper()
	b := &board{tpm: s, root: t.TempDir()}
	vendor.Install(t, filepath.Join(b.root, "etc/tpm2cloud/ek-roots"))
	ca := pki.NewCA(t, "CA", nil)
	for name, data := range map[string][]byte{
		"ca.pem": pki.PEM(ca.Cert), "ca.key": ca.KeyPEM(t),
		"etc/tpm2cloud/tpm2cloud.toml": []byte(`
[device]
model = "board"
serial = "SN1"
mac = "02:00:00:00:00:01"
[idevid.enroll]
method = "ca"
ca_certificate = "/ca.pem"
ca_key = "/ca.key"
[ldevid.enroll]
method = "ca"
ca_certificate = "/ca.pem"
ca_key = "/ca.key"
`)} {
		if err := os.WriteFile(filepath.Join(b.root, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if b.cfg, err = config.Load(filepath.Join(b.root, "etc/tpm2cloud"), b.root); err != nil {
		t.Fatal(err)
	}
	// For the PKCS#11 library, which opens the TPM by itself.
	if err := os.Symlink(s.Dir, filepath.Join(b.root, "t")); err != nil {
		t.Fatal(err)
	}
	b.cfg.TPM.Device = "unix:/t/s"
	return b
}

// program is one of the two programs that use the TPM.
type program struct {
	steps func(*config.Config, *tpm.TPM, *device.Info, func() clock.Clock) []step.Step
	// alone is held while it runs: the PKCS#11 library has one state in a process.
	alone *sync.Mutex
}

var (
	idevidSteps = program{func(cfg *config.Config, t *tpm.TPM, d *device.Info, now func() clock.Clock) []step.Step {
		return idevid.New(cfg, t, d, now).Steps()
	}, nil}
	ldevidSteps = program{func(cfg *config.Config, t *tpm.TPM, d *device.Info, now func() clock.Clock) []step.Step {
		return ldevid.New(cfg, t, d, now).Steps()
	}, &sync.Mutex{}}
)

// run is one run of a program, which a cut may end.
func (b *board) run(t *testing.T, p program, cutter *fault.Cutter) error {
	t.Helper()
	// So small that a certificate is written in pieces.
	cutter.TPM = fault.Small{TPM: b.tpm.Open(t), Buffer: 256}
	return b.runOn(t, p, cutter, cutter.At != 0)
}

// runOn is one run on a bus. Waits take no time, and no time passes but by
// waits: a slow machine ends no budget.
func (b *board) runOn(t *testing.T, p program, bus transport.TPM, cut bool) (err error) {
	t.Helper()
	if p.alone != nil {
		p.alone.Lock()
		defer p.alone.Unlock()
		// The library's sockets are inherited by every process that is started
		// meanwhile, and swtpm, which serves one connection after the other, would
		// wait for as long as that runs.
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
	}
	now := verified()
	synctest.Test(t, func(t *testing.T) {
		defer func() {
			if r := recover(); r != nil {
				t.Errorf("panic: %v\n%s", r, debug.Stack())
			}
		}()
		opened := tpm.New(bus, tpm.Secrets{})
		steps := p.steps(b.cfg, opened, device.New(b.root, b.cfg.Device), func() clock.Clock { return now })
		// A cut ends the process: nothing is tried again for long.
		runner := step.Runner{Steps: steps, Budget: time.Second / 2}
		if !cut {
			runner.Budget = time.Minute
		}
		err = runner.Run(context.Background())
		if err == nil {
			err = opened.Close()
		}
	})
	return err
}

// verified is a clock that is right.
func verified() clock.Clock { return clock.Judge(time.Now(), true, time.Time{}) }

// One answer is lost, as a driver's timeout does it, and the run goes on: it
// ends well by itself.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	vendor, factory := manufactured(t)
	whole := &fault.Cutter{}
	if err := newBoard(t, factory.Fork(t), vendor).run(t, idevidSteps, whole); err != nil {
		t.Fatal(err)
	}
	for at := 1; at <= whole.Sent; at++ {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			b := newBoard(t, factory.Fork(t), vendor)
			lost := &fault.Loser{TPM: fault.Small{TPM: b.tpm.Open(t), Buffer: 256}, At: at}
			if err := b.runOn(t, idevidSteps, lost, false); err != nil && at < whole.Sent {
				t.Fatalf("the answer to command %d was lost: %v", at, err)
			}
			// What a lost answer leaves loaded is the power's to clear.
			b.tpm.Reboot(t)
			if err := b.run(t, idevidSteps, &fault.Cutter{}); err != nil {
				t.Fatal(err)
			}
			b.converged(t, idevidSteps, end{keys: 2, indices: 2})
		})
	}
}

// end is what must be in the TPM at the end.
type end struct {
	keys, indices int
	parallel      bool // what leads there may be tried side by side
}

// converged demands the end state.
func (b *board) converged(t *testing.T, p program, want end) {
	t.Helper()
	opened := b.tpm.Open(t)
	for name, kind := range map[string]struct {
		first tpm2.TPMHandle
		want  int
	}{
		"persistent keys":   {0x81000000, want.keys},
		"NV indices":        {0x01000000, want.indices},
		"transient objects": {0x80000000, 0},
		"loaded sessions":   {0x02000000, 0},
	} {
		list, err := handles(opened, kind.first)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != kind.want {
			t.Errorf("%d %s, want %d", len(list), name, kind.want)
		}
	}
	// What is locked in NV is what the CA has sent, to the last byte.
	staged, err := os.ReadFile(filepath.Join(b.root, "var/lib/tpm2cloud/idevid/certificate.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(staged)
	reader := tpm.New(opened, tpm.Secrets{})
	index, err := reader.Index(tpm.IndexIDevID)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := reader.Read(index); err != nil || !bytes.Equal(data, block.Bytes) || !index.Attributes.WriteLocked {
		t.Errorf("NV holds %d bytes that are not the certificate of %d, or are not locked: %v", len(data), len(block.Bytes), err)
	}
	steps := p.steps(b.cfg, tpm.New(opened, tpm.Secrets{}), device.New(b.root, b.cfg.Device), verified)
	for _, row := range step.Observe(context.Background(), steps) {
		if row.State != step.Present {
			t.Errorf("%s is %s: %s %s", row.Step, row.State, row.Detail, row.Error)
		}
	}
}

// handles are those in use from first on, in its range.
func handles(t transport.TPM, first tpm2.TPMHandle) ([]tpm2.TPMHandle, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(first), PropertyCount: 100}.Execute(t)
	if err != nil {
		return nil, err
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return nil, err
	}
	return list.Handle, nil
}
