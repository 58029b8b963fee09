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
	"github.com/tpm2cloud/tpm2cloud/pkg/operator"
	"github.com/tpm2cloud/tpm2cloud/pkg/status"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// status shows how the device stands, as now or as the units saw it last.
func (o *options) status(ctx context.Context, call *cli.Call) error {
	records := store.Open(filepath.Join(call.Root, status.Dir), 0o755)
	defer records.Close()
	var p *operator.Picture
	cfg, broken := call.Config()
	if broken == nil && o.live {
		subject := check.Open(cfg)
		defer subject.Close()
		p = operator.Look(ctx, subject, records)
	} else {
		p = operator.LastSeen(records)
	}
	if broken == nil {
		p.LookForReset(cfg)
	}
	if call.JSON {
		call.WriteJSON(p)
	} else {
		writePicture(call.Out, p)
	}
	return errors.Join(broken, p.Verdict())
}

func writePicture(w io.Writer, p *operator.Picture) {
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
		writeProgram(w, program)
	}
}

func writeProgram(w io.Writer, p operator.Program) {
	fmt.Fprintf(w, "\n%s%s\n", p.Program, lastRun(p))
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
func lastRun(p operator.Program) string {
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
