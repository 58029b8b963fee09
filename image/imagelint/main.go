// Command imagelint says what in an image, or in the folder of a root file
// system, would be cloned that must not be: identities, keys and the state of
// a machine that has run. image/lint starts it.
//
// It reads a root as a [tree], which is a folder or an ext4 file system inside
// an image; neither is mounted, changed, or needs root. What is looked for is
// in checks.go, one function a subject.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

const usage = `usage: image/lint [--json] IMAGE|ROOT

Says what in an image (a disk with MBR or GPT, or one ext4 file system), or in
the folder of a root file system, would be cloned that must not be. It changes
nothing. File systems are read that have a folder /etc; of FAT partitions only
the boot loader's random seed is looked at.

  error:    every board would be the same one, or a secret is open to all
  warning:  every board has it, and so has a thief of one image

exit codes: 0 no errors; 1 errors; 64 usage; 65 not an image; 69 a program is missing; 77 permission
`

// An exit is an error with the exit code of the program.
type exit struct {
	code int
	err  error
}

func (e exit) Error() string { return e.err.Error() }

func refuse(code int, format string, args ...any) error {
	return exit{code, fmt.Errorf(format, args...)}
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	errs, err := lint(args, stdout)
	var e exit
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
	case errors.As(err, &e):
		fmt.Fprintf(stderr, "image/lint: %v\n", err)
		return e.code
	case errors.Is(err, os.ErrPermission):
		fmt.Fprintf(stderr, "image/lint: %v; run it as root\n", err)
		return 77
	case err != nil:
		fmt.Fprintf(stderr, "image/lint: %v\n", err)
		return 65
	case errs > 0:
		return 1
	}
	return 0
}

// lint prints the findings of one image or root and counts the errors.
func lint(args []string, stdout io.Writer) (int, error) {
	flags := flag.NewFlagSet("image/lint", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	asJSON := flags.Bool("json", false, "")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0, err
		}
		return 0, refuse(64, "%w; see image/lint --help", err)
	}
	if flags.NArg() != 1 {
		return 0, refuse(64, "cannot tell what to look at: %d names are given, one is wanted; see image/lint --help", flags.NArg())
	}
	name := flags.Arg(0)
	trees, err := open(name)
	if err != nil {
		return 0, err
	}
	findings := []finding{} // never null in JSON
	for _, t := range trees {
		found, err := check(t)
		if err != nil {
			return 0, fmt.Errorf("cannot read %s: %w", name, err)
		}
		for _, f := range found {
			if len(trees) > 1 {
				f.Path = t.name() + ":" + f.Path
			}
			findings = append(findings, f)
		}
	}
	errs := 0
	for _, f := range findings {
		if f.Severity == "error" {
			errs++
		}
	}
	if *asJSON {
		encoder := json.NewEncoder(stdout)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		return errs, encoder.Encode(struct {
			Target   string    `json:"target"`
			Errors   int       `json:"errors"`
			Warnings int       `json:"warnings"`
			Findings []finding `json:"findings"`
		}{name, errs, len(findings) - errs, findings})
	}
	for _, f := range findings {
		fmt.Fprintf(stdout, "%s: %s: %s; %s (hint: %s)\n", f.Severity, f.Path, f.What, f.Why, f.Hint)
	}
	if len(findings) == 0 {
		fmt.Fprintf(stdout, "%s: no findings\n", name)
	}
	return errs, nil
}
