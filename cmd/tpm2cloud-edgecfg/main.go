// Command tpm2cloud-edgecfg configures Azure IoT Edge for the device's
// identities; see pkg/edgecfg.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/tpm2cloud/tpm2cloud/pkg/cli"
	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/edgecfg"
)

func main() { os.Exit(run()) }

func run() int {
	return cli.Main(cli.Program{
		Name:    "tpm2cloud-edgecfg",
		Summary: "tpm2cloud-edgecfg configures Azure IoT Edge, which then gets its operational certificate by the LDevID",
		Config:  config.ProgramEdge,
		Open:    open,
		Verbs: []cli.Verb{
			{Name: "refresh", Summary: "copy a renewed LDevID certificate to where the agent reads it"},
			{Name: "pending", Summary: "say whether the agent has yet to take over a renewed LDevID: exit code 0 yes, 1 no"},
		},
	}, os.Args[1:], os.Stdout, os.Stderr)
}

func open(cfg *config.Config) (cli.Session, error) {
	program, err := edgecfg.New(cfg, edgecfg.Options{})
	if err != nil {
		return cli.Session{}, err
	}
	verb := func(name string, out io.Writer) error {
		if name == "pending" {
			return pending(program, out)
		}
		changed, err := program.Refresh()
		if changed {
			fmt.Fprintln(out, "copied the renewed LDevID certificate")
		}
		return err
	}
	return cli.Session{Steps: program.Steps(), Clock: func() clock.Clock { return clock.Read() }, Close: func() error { return nil }, Verb: verb}, nil
}

// pending answers for tpm2cloud-retry.service.
func pending(program *edgecfg.Program, out io.Writer) error {
	is, err := program.Pending()
	switch {
	case err != nil:
		return err
	case is:
		fmt.Fprintln(out, "the agent has yet to take over the renewed LDevID certificate")
		return nil
	}
	fmt.Fprintln(out, "nothing is pending")
	return cli.ErrNo
}
