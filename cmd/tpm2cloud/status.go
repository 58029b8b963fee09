package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/check"
	"github.com/tpm2cloud/tpm2cloud/pkg/cli"
	"github.com/tpm2cloud/tpm2cloud/pkg/reset"
	"github.com/tpm2cloud/tpm2cloud/pkg/status"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// picture is the status of the whole device.
type picture struct {
	Live     bool          `json:"live"` // seen now, not by the units
	TPM      *status.TPM   `json:"tpm,omitempty"`
	Clock    *status.Clock `json:"clock,omitempty"`
	Programs []program     `json:"programs"`
	// Reset is of one that is not finished.
	Reset string `json:"reset,omitempty"`
	reset error
}

// program is a program in the picture.
type program struct {
	*status.Record
	Error string `json:"error,omitempty"` // why it could not be looked at
	err   error
}

// status shows how the device stands, as now or as the units saw it last.
func (o *options) status(ctx context.Context, call *cli.Call) error {
	records := store.Open(filepath.Join(call.Root, status.Dir), 0o755)
	defer records.Close()
	var p *picture
	cfg, broken := call.Config()
	if broken == nil && o.live {
		subject := check.Open(cfg)
		defer subject.Close()
		p = lookNow(ctx, subject, records)
	} else {
		p = lastSeen(records)
	}
	if broken == nil {
		state := store.Open(cfg.Path(cfg.Run.State), 0o755)
		defer state.Close()
		if p.reset = reset.Allow(state, false); p.reset != nil {
			p.Reset = p.reset.Error()
		}
	}
	if call.JSON {
		call.WriteJSON(p)
	} else {
		p.write(call.Out)
	}
	return errors.Join(broken, p.verdict())
}

// lookNow looks at everything.
func lookNow(ctx context.Context, subject *check.Subject, records *store.Dir) *picture {
	now := time.Now().UTC().Truncate(time.Second)
	c := subject.Clock
	p := &picture{Live: true, Clock: &status.Clock{Verified: c.Verified, Time: c.Time.UTC(), Why: c.Why}}
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

// lastSeen is what the units last wrote.
func lastSeen(records *store.Dir) *picture {
	p := &picture{}
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

func (p *picture) add(r *status.Record, err error) {
	entry := program{Record: r, err: err}
	if err != nil {
		entry.Error = err.Error()
	}
	p.Programs = append(p.Programs, entry)
}

// verdict is nil when everything is present; else it is what stands in the way
// first.
func (p *picture) verdict() error {
	if p.reset != nil {
		return p.reset
	}
	for _, program := range p.Programs {
		err := program.err
		if err == nil {
			err = cli.Verdict(program.Rows())
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

func (p *picture) write(w io.Writer) {
	if p.TPM != nil {
		fmt.Fprintf(w, "TPM: %s\n", p.TPM)
	}
	if c := p.Clock; c != nil && c.Verified {
		fmt.Fprintln(w, "clock: verified")
	} else if c != nil {
		fmt.Fprintf(w, "clock: unverified: %s\n", c.Why)
	}
	if p.Reset != "" {
		fmt.Fprintf(w, "reset: %s\n", p.Reset)
	}
	for _, program := range p.Programs {
		program.write(w)
	}
}

func (p *program) write(w io.Writer) {
	fmt.Fprintf(w, "\n%s%s\n", p.Program, p.lastRun())
	if p.Error != "" {
		fmt.Fprintf(w, "  %s\n", p.Error)
	}
	for _, s := range p.Steps {
		cli.WriteRow(w, s.Row, s.Since)
	}
	if f := p.LastError; f != nil {
		fmt.Fprintf(w, "last error, %s: %s\n", f.At.Format(time.RFC3339), f.Error)
		if f.Hint != "" {
			fmt.Fprintf(w, "  hint: %s\n", f.Hint)
		}
	}
}

// lastRun says when the program ran, and how that ended.
func (p *program) lastRun() string {
	switch {
	case p.Began.IsZero():
		return ""
	case p.Ended.IsZero():
		return fmt.Sprintf(": runs since %s, and waits for another try", p.Began.Format(time.RFC3339))
	case p.ExitCode != 0:
		return fmt.Sprintf(": failed with exit code %d at %s", p.ExitCode, p.Ended.Format(time.RFC3339))
	}
	return fmt.Sprintf(": ended well at %s", p.Ended.Format(time.RFC3339))
}
