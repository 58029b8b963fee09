// Tpm2cloud-azure makes the cloud side of a fleet in Azure, and looks at it: an IoT Hub, a Device Provisioning Service with
// the hub linked to it, the CA of the operational certificates in that service, and an enrolment group, so that every device
// with a certificate of that CA becomes an IoT Edge device of the hub. Package internal/deployment has the steps.
//
// It is a Go module of its own, so that Azure's SDK and what that needs are in no other module's list. From the main one it
// takes the EST client, the steps with their errors, and the reading and writing of files: none of these needs cgo or a TPM.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

func main() {
	// Keys of hub and service are in this process's memory, and would be in its core dump.
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is a call of the program; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := &command{stdin: stdin, stdout: stdout, stderr: stderr}
	err := c.run(ctx, args)
	switch {
	case errors.Is(err, flag.ErrHelp), err == nil:
		return 0
	case errors.Is(err, context.Canceled):
		err = step.Fail(step.Temporary, "interrupted by a signal; what Azure is at work on goes on, and a later run goes on from there")
	}
	// Several problems are several lines, each of them an error's.
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(stderr, "error: %s\n", strings.TrimSuffix(line, "\n"))
	}
	if hint := step.HintOf(err); hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", hint)
	}
	return int(step.ClassOf(err))
}
