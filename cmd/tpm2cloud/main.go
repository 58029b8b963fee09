// Command tpm2cloud is the operator's program on a device: it shows how the
// device's identities stand, proves that they work, collects what a supporter
// needs to know, and takes them away again.
package main

import (
	"context"
	"flag"
	"os"

	"github.com/tpm2cloud/tpm2cloud/pkg/cli"
)

func main() { os.Exit(run()) }

// options are those of the verbs.
type options struct {
	live bool
}

func run() int {
	var o options
	return cli.MainTool(cli.Tool{
		Name:    "tpm2cloud",
		Summary: "tpm2cloud shows, proves, reports and takes away the identities of a device",
		Verbs: []cli.Verb{
			{Name: "status", Summary: "show each step of the three programs, change nothing",
				Flags: func(f *flag.FlagSet) {
					f.BoolVar(&o.live, "live", os.Geteuid() == 0, "look now; else what the units last wrote. As root it is the default; --live=false")
				}},
		},
		Run: o.run,
	}, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

func (o *options) run(ctx context.Context, call *cli.Call) error {
	switch call.Verb {
	default:
		return o.status(ctx, call)
	}
}
