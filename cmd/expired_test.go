package cmd

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/device"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/fault"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// A device that was off while its LDevID certificate ended gets another at its
// next boot, if its clock is right; one whose clock may be wrong judges nothing.
func TestExpiredAtBoot(t *testing.T) {
	vendor := tpmkit.NewVendor(t)
	factory := tpmkit.Start(t)
	factory.Manufacture(t, vendor)
	factory.Cut()
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
