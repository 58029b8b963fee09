package cmd

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/device"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/fault"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// A device that was off while its LDevID certificate ended gets another at its
// next boot, if its clock is right; one whose clock may be wrong judges nothing.
func TestExpiredAtBoot(t *testing.T) {
	vendor, factory := manufactured(t)
	b := newBoard(t, factory.Fork(t), vendor)
	b.cfg.LDevID.Enroll.Days = 1
	for _, p := range []program{idevidSteps, ldevidSteps} {
		if err := b.run(t, p, &fault.Cutter{}); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(identity.Dir(b.cfg, identity.LDevID).Name(), identity.FileCertificate)
	read := func() string {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	first := read()
	for _, right := range []bool{false, true} {
		now := clock.Judge(time.Now().Add(48*time.Hour), right, time.Time{})
		later := program{func(cfg *config.Config, t *tpm.TPM, d *device.Info, _ func() clock.Clock) []step.Step {
			return ldevidSteps.steps(cfg, t, d, func() clock.Clock { return now })
		}, ldevidSteps.alone}
		if err := b.run(t, later, &fault.Cutter{}); err != nil {
			t.Fatal(err)
		}
		if changed := read() != first; changed != right {
			t.Errorf("a clock that is verified: %v; a new certificate: %v", right, changed)
		}
	}
}

// An IDevID has no end, and its CA has: the device works with it at every later
// boot, also where a cut has left the certificate on disk only.
func TestIDevIDOutlivesItsCA(t *testing.T) {
	vendor, factory := manufactured(t)
	b := newBoard(t, factory.Fork(t), vendor)
	now := time.Now()
	at := func(p program, when time.Time) error {
		c := clock.Judge(when, true, time.Time{})
		return b.run(t, program{func(cfg *config.Config, t *tpm.TPM, d *device.Info, _ func() clock.Clock) []step.Step {
			return p.steps(cfg, t, d, func() clock.Clock { return c })
		}, p.alone}, &fault.Cutter{})
	}
	issuer := func(changes ...pki.Change) {
		ca := pki.NewCA(t, "CA", nil, changes...)
		for name, data := range map[string][]byte{"ca.pem": pki.PEM(ca.Cert), "ca.key": ca.KeyPEM(t)} {
			if err := os.WriteFile(filepath.Join(b.root, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	issuer(pki.Dates(now.AddDate(-9, 0, 0), now.AddDate(0, 0, -1)))
	if err := at(idevidSteps, now.AddDate(-1, 0, 0)); err != nil {
		t.Fatal(err)
	}
	b.tpm.Reboot(t) // and so the platform hierarchy is open
	opened := tpm.New(b.tpm.Open(t), tpm.Secrets{})
	index, err := opened.Index(tpm.IndexIDevID)
	if err != nil {
		t.Fatal(err)
	}
	if err := opened.Undefine(tpm2.TPMRHPlatform, index); err != nil {
		t.Fatal(err)
	}
	if err := at(idevidSteps, now); err != nil {
		t.Fatal(err)
	}
	issuer() // the owner's, whose certificates end with it
	if err := at(ldevidSteps, now); err != nil {
		t.Fatal(err)
	}
	b.converged(t, idevidSteps, end{keys: 4, indices: 2})
}
