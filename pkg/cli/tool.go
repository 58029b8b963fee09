package cli

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
)

// Tool is a program of verbs only: it has no steps of its own.
type Tool struct {
	Name    string
	Summary string // what it does, for the usage text
	Verbs   []Verb
	Run     func(context.Context, *Call) error
}

// Call is one call of a tool.
type Call struct {
	Verb string
	Root string // below which every absolute path lies
	JSON bool
	In   io.Reader
	Out  io.Writer

	command *command
}

// Config reads the configuration.
func (c *Call) Config() (*config.Config, error) { return c.command.config() }

// ConfigDir is the directory of the configuration, a path below Root.
func (c *Call) ConfigDir() string { return c.command.dir }

// WriteJSON writes the result.
func (c *Call) WriteJSON(v any) { c.command.writeJSON(v) }

// MainTool runs a tool and returns its exit code.
func MainTool(t Tool, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := &command{name: t.Name, summary: t.Summary, verbs: t.Verbs, stdout: stdout, stderr: stderr}
	return c.finish(func() error {
		verb, err := c.parse(args)
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		return t.Run(ctx, &Call{Verb: verb, Root: c.root, JSON: c.json, In: stdin, Out: stdout, command: c})
	})
}
