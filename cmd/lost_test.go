package cmd

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/device"
	"github.com/tpm2cloud/tpm2cloud/pkg/idevid"
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
`)} {
		if err := os.WriteFile(filepath.Join(b.root, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if b.cfg, err = config.Load(filepath.Join(b.root, "etc/tpm2cloud"), b.root); err != nil {
		t.Fatal(err)
	}
	return b
}

// run is one run of tpm2cloud-idevid, which loses an answer on the way.
func (b *board) run(t *testing.T, lost *fault.Loser) error {
	t.Helper()
	// So small that a certificate is written in pieces.
	lost.TPM = fault.Small{TPM: b.tpm.Open(t), Buffer: 256}
	opened := tpm.New(lost, tpm.Secrets{})
	runner := step.Runner{Steps: b.steps(opened), Budget: time.Minute}
	if err := runner.Run(context.Background()); err != nil {
		return err
	}
	return opened.Close()
}

func (b *board) steps(t *tpm.TPM) []step.Step {
	return idevid.New(b.cfg, t, device.New(b.root, b.cfg.Device), verified).Steps()
}

// verified is a clock that is right.
func verified() clock.Clock { return clock.Judge(time.Now(), true, time.Time{}) }

// One answer is lost, as a driver's timeout does it, and the run goes on: it
// ends well by itself.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	vendor := tpmkit.NewVendor(t)
	factory := tpmkit.Start(t)
	factory.Manufacture(t, vendor)
	factory.Cut()
	whole := &fault.Loser{}
	if err := newBoard(t, factory.Fork(t), vendor).run(t, whole); err != nil {
		t.Fatal(err)
	}
	for at := 1; at <= whole.Sent; at++ {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel() // each waits for a second or so before it tries again
			b := newBoard(t, factory.Fork(t), vendor)
			if err := b.run(t, &fault.Loser{At: at}); err != nil && at < whole.Sent {
				t.Fatalf("the answer to command %d was lost: %v", at, err)
			}
			// What a lost answer leaves loaded is the power's to clear.
			b.tpm.Reboot(t)
			if err := b.run(t, &fault.Loser{}); err != nil {
				t.Fatal(err)
			}
			b.converged(t)
		})
	}
}

// converged demands the end state.
func (b *board) converged(t *testing.T) {
	t.Helper()
	opened := b.tpm.Open(t)
	for name, kind := range map[string]struct {
		first tpm2.TPMHandle
		want  int
	}{
		"persistent keys":   {0x81000000, 2},
		"NV indices":        {0x01000000, 2},
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
	for _, row := range step.Observe(context.Background(), b.steps(tpm.New(opened, tpm.Secrets{}))) {
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
