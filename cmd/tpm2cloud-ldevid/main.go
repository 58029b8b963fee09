// Command tpm2cloud-ldevid gives a device its owner's identity; see
// pkg/ldevid.
package main

import (
	"os"

	"github.com/tpm2cloud/tpm2cloud/pkg/cli"
	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/device"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/ldevid"
)

func main() { os.Exit(run()) }

func run() int {
	return cli.Main(cli.Program{
		Name:    "tpm2cloud-ldevid",
		Summary: "tpm2cloud-ldevid gives the device its owner's identity (LDevID), in the TPM and in a PKCS#11 token",
		Config:  config.ProgramLDevID,
		Open:    open,
	}, os.Args[1:], os.Stdout, os.Stderr)
}

func open(cfg *config.Config) (cli.Session, error) {
	floors := identity.Floors(cfg)
	now := func() clock.Clock { return clock.Read(floors...) }
	t, err := identity.OpenTPM(cfg)
	if err != nil {
		return cli.Session{}, err
	}
	program := ldevid.New(cfg, t, device.New(cfg.Root(), cfg.Device), now)
	return cli.Session{Steps: program.Steps(), Clock: now(), Close: t.Close}, nil
}
