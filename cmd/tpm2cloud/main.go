// Command tpm2cloud is the operator's program on a device: it shows how the
// device's identities stand, proves that they work, collects what a supporter
// needs to know, and takes them away again.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/tpm2cloud/tpm2cloud/pkg/check"
	"github.com/tpm2cloud/tpm2cloud/pkg/cli"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

func main() {
	// The checks start this program again, as another user; see pkg/check.
	if len(os.Args) == 2 && os.Args[1] == check.SignVerb {
		if err := check.SignChild(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintf(os.Stderr, "error: %v\n", err)
			os.Exit(int(step.Usage))
		}
		return
	}
	os.Exit(run())
}

// options are those of the verbs.
type options struct {
	live bool
	resetOptions
	output string // of report
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
			{Name: "check", Summary: "prove whatever can be proven, change nothing"},
			{Name: "report", Summary: "collect what a supporter needs to know, without a secret",
				Flags: func(f *flag.FlagSet) {
					f.StringVar(&o.output, "output", "", "the file, a gzipped tar; - is standard output. It must not exist; else one in this directory")
				}},
			{Name: "reset", Summary: "take identities away: ownership transfer, return, scrapping",
				Flags: func(f *flag.FlagSet) {
					f.BoolVar(&o.owner, "ldevid", false, "the owner's: LDevID, token, certificates, the agent's configuration")
					f.BoolVar(&o.all, "all", false, "the manufacturer's as well, at the next boot where the platform hierarchy is closed")
					f.BoolVar(&o.yes, "yes", false, "do not ask; alone, go on with a reset that was interrupted")
				}},
		},
		Run: o.run,
	}, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

func (o *options) run(ctx context.Context, call *cli.Call) error {
	switch call.Verb {
	case "check":
		return o.check(ctx, call)
	case "report":
		return o.report(ctx, call)
	case "reset":
		return o.reset(ctx, call)
	default:
		return o.status(ctx, call)
	}
}
