package cmd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/device"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// at runs tpm2cloud-idevid by a clock. Each failed try is told to failed; the
// waits are none, so that a run takes as long as its tries.
func (b *board) at(t *testing.T, now func() clock.Clock, failed func(step.Event)) error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	opened := tpm.New(b.tpm.Open(t), tpm.Secrets{})
	failures := 0
	runner := step.Runner{Steps: idevidSteps.steps(b.cfg, opened, device.New(b.root, b.cfg.Device), now), Budget: time.Minute,
		Draw: func(time.Duration) time.Duration { return 0 }, Notify: func(e step.Event) {
			if e.Err == nil {
				return
			}
			failed(e)
			if failures++; failures > 5 {
				cancel() // it is not about to succeed
			}
		}}
	err := runner.Run(ctx)
	return errors.Join(err, opened.Close())
}

// The EK certificates of the kit are of 2010 to 2090, its CAs of 2000 to 2100;
// the board's own CA began yesterday.
func TestClock(t *testing.T) {
	t.Parallel()
	vendor, factory := manufactured(t)
	today := time.Now()
	yesterday := today.Add(-24 * time.Hour)
	year := func(y int) time.Time { return time.Date(y, 6, 1, 0, 0, 0, 0, time.UTC) }
	fresh := func(t *testing.T) *board {
		b := newBoard(t, factory.Fork(t), vendor)
		ca := pki.NewCA(t, "young CA", nil, pki.Dates(yesterday, today.Add(1000*time.Hour)))
		for name, data := range map[string][]byte{"ca.pem": pki.PEM(ca.Cert), "ca.key": ca.KeyPEM(t)} {
			if err := os.WriteFile(filepath.Join(b.root, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		b.cfg.EK.AllowExpired = false
		return b
	}

	// What dates alone forbid is tried again while nobody vouches for the clock,
	// and is done as soon as somebody has set it, in the same run.
	for name, test := range map[string]struct {
		now   time.Time
		built time.Time
		step  string // that waits; "" if none does
	}{
		"1970":             {now: year(1970), step: "ek-key"},
		"2000":             {now: year(2000), step: "ek-key"},
		"1970, built 2000": {now: year(1970), built: year(2000), step: "ek-key"},
		"1970, built now":  {now: year(1970), built: today},
		"the build's date": {now: today, built: today},
		"before the CA":    {now: yesterday.Add(-24 * time.Hour), step: "idevid-certificate"},
		"2095":             {now: year(2095), step: "ek-key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := fresh(t)
			set := false
			failures := 0
			err := b.at(t, func() clock.Clock {
				if set {
					return clock.Judge(today, true, test.built)
				}
				return clock.Judge(test.now, false, test.built)
			}, func(e step.Event) {
				failures++
				if e.Step != test.step || step.ClassOf(e.Err) != step.Temporary || step.ReasonOf(e.Err) != "" || !strings.Contains(step.HintOf(e.Err), "clock") {
					t.Errorf("%s waits: class %d, reason %q, hint %q: %v", e.Step, step.ClassOf(e.Err), step.ReasonOf(e.Err), step.HintOf(e.Err), e.Err)
				}
				set = failures == 2
			})
			if want := map[bool]int{true: 2}[test.step != ""]; err != nil || failures != want {
				t.Fatalf("%d failed tries, want %d: %v", failures, want, err)
			}
			b.converged(t, idevidSteps, end{keys: 2, indices: 2})

			// At its next boot without a battery and without a network, what it
			// has is time enough.
			b.tpm.Reboot(t)
			err = b.at(t, func() clock.Clock { return clock.Judge(year(1970), false, time.Time{}, identity.Floors(b.cfg)...) },
				func(e step.Event) { t.Errorf("at the next boot, in 1970: %s waits: %v", e.Step, e.Err) })
			if err != nil {
				t.Errorf("at the next boot, in 1970: %v", err)
			}
		})
	}

	// What ends a run, and what the journal calls it (pkg/cli): a date is a
	// verdict on the TPM only by a clock that is vouched for.
	for name, test := range map[string]struct {
		now      time.Time
		verified bool
		class    step.Class
		reason   step.Reason
	}{
		"too early, unverified": {year(1970), false, step.Temporary, ""},
		"too late, unverified":  {year(2095), false, step.Temporary, ""},
		"too early":             {year(2005), true, step.Refused, step.NotGenuine},
		"too late":              {year(2095), true, step.Refused, step.NotGenuine},
	} {
		t.Run("ends/"+name, func(t *testing.T) {
			t.Parallel()
			b := fresh(t)
			opened := tpm.New(b.tpm.Open(t), tpm.Secrets{})
			now := func() clock.Clock { return clock.Judge(test.now, test.verified, time.Time{}) }
			runner := step.Runner{Steps: idevidSteps.steps(b.cfg, opened, device.New(b.root, b.cfg.Device), now), Budget: 10 * time.Second,
				Draw: func(time.Duration) time.Duration { return time.Hour }}
			err := runner.Run(context.Background())
			if failure, ok := errors.AsType[*step.Failure](err); !ok || failure.Step != "ek-key" || step.ClassOf(err) != test.class || step.ReasonOf(err) != test.reason {
				t.Errorf("class %d, reason %q: %v", step.ClassOf(err), step.ReasonOf(err), err)
			}
			if err := opened.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A TPM without a certificate is not proven genuine, and the journal says so.
func TestNoEKCertificate(t *testing.T) {
	t.Parallel()
	b := newBoard(t, tpmkit.Start(t), tpmkit.NewVendor(t))
	err := b.at(t, verified, func(e step.Event) { t.Errorf("%s is tried again: %v", e.Step, e.Err) })
	if step.ClassOf(err) != step.Refused || step.ReasonOf(err) != step.NotGenuine {
		t.Errorf("class %d, reason %q: %v", step.ClassOf(err), step.ReasonOf(err), err)
	}
	opened := tpm.New(b.tpm.Open(t), tpm.Secrets{})
	if _, err := opened.ReadPublic(tpm2.TPMHandle(0x81010001)); !errors.Is(err, tpm.ErrNotFound) {
		t.Errorf("a key was made for it: %v", err)
	}
}
