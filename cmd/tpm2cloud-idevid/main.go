// Command tpm2cloud-idevid gives a device its manufacturer identity; see
// pkg/idevid.
package main

import (
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/tpm2cloud/tpm2cloud/pkg/cli"
	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/device"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/idevid"
)

func main() { os.Exit(run()) }

// options are those of the verbs.
type options struct {
	der    bool
	ca, cn string
}

func run() int {
	var o options
	return cli.Main(cli.Program{
		Name:    "tpm2cloud-idevid",
		Summary: "tpm2cloud-idevid proves the TPM genuine and gives the device its manufacturer identity (IDevID)",
		Config:  config.ProgramIDevID,
		Open:    o.open,

		Finishes: true,
		Verbs: []cli.Verb{
			{Name: "export", Summary: "write the IDevID certificate that is in the TPM to standard output",
				Flags: func(f *flag.FlagSet) { f.BoolVar(&o.der, "der", false, "write DER; else PEM") }},
			{Name: "verify", Summary: "prove the IDevID: chain, key and common name",
				Flags: func(f *flag.FlagSet) {
					f.StringVar(&o.ca, "ca", "", "a file of CA certificates, below --root; else those that were kept at enrolment")
					f.StringVar(&o.cn, "cn", "", "the common name that is expected; else the configuration's")
				}},
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
	program := idevid.New(cfg, t, device.New(cfg.Root(), cfg.Device), now)
	verb := func(verb string, out io.Writer) error {
		if verb == "export" {
			return o.export(program, out)
		}
		return o.verify(program, out)
	}
	return cli.Session{Steps: program.Steps(), Clock: now, Close: t.Close, TPM: program.TPM, Verb: verb}, nil
}

func (o *options) export(program *idevid.Program, out io.Writer) error {
	certificate, err := program.Export()
	if err != nil {
		return err
	}
	data := certificate.Raw
	if !o.der {
		data = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: data})
	}
	_, err = out.Write(data)
	return err
}

func (o *options) verify(program *idevid.Program, out io.Writer) error {
	good, err := program.Verify(o.ca, o.cn)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "verified: %s, by %s; the TPM holds its key\n", good.Certificate.Subject, good.Certificate.Issuer)
	for _, w := range good.Warnings {
		fmt.Fprintf(out, "warning: %s\n", w)
	}
	return nil
}
