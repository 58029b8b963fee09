// Tpm2cloud-lab is the cloud in a box, and the strangers that the programs of tpm2cloud meet on a
// device, for demos, tests and offline benches.
//
// It shares no code with those programs: what it accepts and what it refuses is a second opinion,
// made from the standards and from what the real services do. Package internal/cloud is the EST
// server, DPS and the hub; package internal/aziot is the side of the Azure IoT Identity Service.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-lab/internal/aziot"
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 64
)

// command is a subcommand: it defines its flags and returns what to do once they are parsed.
type command struct {
	name, args, help string
	setup            func(*flag.FlagSet) func(ctx context.Context, args []string, stdout io.Writer) error
}

// errUsage marks an error of the command line.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, argv []string, stdout, stderr io.Writer) int {
	if aziot.IsTool(argv[0]) {
		return aziot.RunTool(argv, stdout, stderr)
	}
	name, args := "", argv[1:]
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	if name == "ca" && len(args) > 0 { // the one command of two words
		name, args = name+" "+args[0], args[1:]
	}
	switch name {
	case "-h", "-help", "--help", "help":
		usage(stdout)
		return exitOK
	}
	for _, c := range commands {
		if c.name == name {
			return c.run(ctx, args, stdout, stderr)
		}
	}
	usage(stderr)
	return exitUsage
}

func (c command) run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("tpm2cloud-lab "+c.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // the messages below say it better
	do := c.setup(fs)
	help := func(w io.Writer) {
		fmt.Fprintf(w, "Usage: tpm2cloud-lab %s %s\n\n%s\n", c.name, c.args, c.help)
		fs.SetOutput(w)
		fs.PrintDefaults()
	}
	err := fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		help(stdout)
		return exitOK
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", errUsage, err)
	} else {
		err = do(ctx, fs.Args(), stdout)
	}
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "error: %v\nhint: tpm2cloud-lab %s --help\n", err, c.name)
		return exitUsage
	default:
		fmt.Fprintf(stderr, "error: %v\n", err)
		return exitError
	}
}

func usage(w io.Writer) {
	fmt.Fprint(w, "Usage: tpm2cloud-lab COMMAND [FLAGS]\n\nThe cloud in a box, for demos, tests and offline benches.\n\nCommands:\n")
	for _, c := range commands {
		fmt.Fprintf(w, "  %-36s %s\n", c.name+" "+c.args, firstSentence(c.help))
	}
	fmt.Fprint(w, "\n\"tpm2cloud-lab COMMAND --help\" says more.\n")
}
