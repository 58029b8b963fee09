// Command tpm2cloud-ldevid gives a device its owner's identity; see
// pkg/ldevid.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/cli"
	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/device"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/ldevid"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

func main() { os.Exit(run()) }

// options are those of the verb renew.
type options struct{ ldevid.Renewal }

func run() int {
	var o options
	return cli.Main(cli.Program{
		Name:    "tpm2cloud-ldevid",
		Summary: "tpm2cloud-ldevid gives the device its owner's identity (LDevID), in the TPM and in a PKCS#11 token",
		Config:  config.ProgramLDevID,
		Open:    o.open,
		Verbs: []cli.Verb{
			{Name: "renew", Summary: "renew the certificate when two thirds of its life are over", Steps: true,
				Flags: func(f *flag.FlagSet) {
					f.BoolVar(&o.Now, "now", false, "before its time")
					f.BoolVar(&o.NewKey, "new-key", false, "now, and for a new key")
				}},
			{Name: "due", Summary: "say whether it is to be renewed: exit code 0 yes, 1 no"},
		},
	}, os.Args[1:], os.Stdout, os.Stderr)
}

func (o *options) open(cfg *config.Config) (cli.Session, error) {
	floors := identity.Floors(cfg)
	now := func() clock.Clock { return clock.Read(floors...) }
	t, err := identity.OpenTPM(cfg)
	if err != nil {
		return cli.Session{}, err
	}
	program := ldevid.New(cfg, t, device.New(cfg.Root(), cfg.Device), now)
	return cli.Session{
		Steps: program.Steps(), Clock: now, Close: t.Close,
		Verb:      func(_ string, out io.Writer) error { return due(program, now(), out) },
		VerbSteps: func(string) []step.Step { return program.RenewalSteps(o.Renewal) },
	}, nil
}

// due answers for a unit's ExecCondition=.
func due(program *ldevid.Program, now clock.Clock, out io.Writer) error {
	at, err := program.Due()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		fmt.Fprintln(out, "there is no certificate yet")
		return cli.ErrNo
	case err != nil:
		return err
	case now.Time.Before(at):
		fmt.Fprintf(out, "to be renewed from %s\n", at.Format(time.RFC3339))
		return cli.ErrNo
	}
	fmt.Fprintf(out, "to be renewed since %s\n", at.Format(time.RFC3339))
	return nil
}
