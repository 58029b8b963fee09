package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/check"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/reset"
	"github.com/tpm2cloud/tpm2cloud/pkg/status"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// Picture is the status of the whole device.
type Picture struct {
	Live     bool          `json:"live"` // seen now, not by the units
	TPM      *status.TPM   `json:"tpm,omitempty"`
	Clock    *status.Clock `json:"clock,omitempty"`
	Programs []Program     `json:"programs"`
	// Reset is of one that is not finished.
	Reset string `json:"reset,omitempty"`
	reset error
}

// Program is a program in the picture.
type Program struct {
	*status.Record
	Error string `json:"error,omitempty"` // why it could not be looked at
	err   error
}

// Look is the picture of a device as it is now; what was seen before is in the
// records of its programs.
func Look(ctx context.Context, subject *check.Subject, records *store.Dir) *Picture {
	now := time.Now().UTC().Truncate(time.Second)
	c := subject.Clock
	p := &Picture{Live: true, Clock: &status.Clock{Verified: c.Verified, Time: c.Time.UTC(), Why: c.Why}}
	for _, name := range check.Programs {
		look := subject.Look(ctx, name)
		last, err := status.Read(records, string(name))
		if err != nil && !status.NotRun(err) && look.Err == nil {
			look.Err = err
		}
		p.add(status.Afresh(string(name), look.Rows, now, last), look.Err)
	}
	p.TPM, _ = subject.DescribeTPM() // why there is none, the steps have said
	return p
}

// LastSeen is what the units last wrote.
func LastSeen(records *store.Dir) *Picture {
	p := &Picture{}
	for _, name := range check.Programs {
		r, err := status.Read(records, string(name))
		if status.NotRun(err) {
			err = step.As(step.Temporary, "systemctl start tpm2cloud.target starts it; as root, tpm2cloud status looks by itself",
				errors.New("it has not run since the boot"))
		}
		if r == nil {
			r = &status.Record{Program: string(name)}
		}
		p.add(r, err)
		if r.TPM != nil {
			p.TPM = r.TPM
		}
		if r.Clock != nil {
			p.Clock = r.Clock
		}
	}
	return p
}

func (p *Picture) add(r *status.Record, err error) {
	entry := Program{Record: r, err: err}
	if err != nil {
		entry.Error = err.Error()
	}
	p.Programs = append(p.Programs, entry)
}

// Verdict is nil when everything is present; else it is what stands in the way
// first.
func (p *Picture) Verdict() error {
	if p.reset != nil {
		return p.reset
	}
	for _, program := range p.Programs {
		err := program.err
		if err == nil {
			err = step.Verdict(program.Rows())
		}
		if err == nil && !p.Live && program.ExitCode != 0 {
			err = step.Fail(step.Class(program.ExitCode), "its last run failed")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", program.Program, err)
		}
	}
	return nil
}

// LookForReset adds a reset that is not finished.
func (p *Picture) LookForReset(cfg *config.Config) {
	state := store.Open(cfg.Path(cfg.Run.State), 0o755)
	defer state.Close()
	if p.reset = reset.Allow(state, false); p.reset != nil {
		p.Reset = p.reset.Error()
	}
}
