package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Running says whether systemd runs this machine, so that it can be asked.
func Running() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// Show are the properties of a unit, as systemctl shows them.
func Show(ctx context.Context, unit string) (map[string]string, error) {
	text, err := systemctl(ctx, "show", "--", unit)
	if err != nil {
		return nil, err
	}
	properties := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
			properties[name] = value
		}
	}
	return properties, nil
}

// JournalOf is what units wrote to the journal in this boot, the last lines of it.
func JournalOf(ctx context.Context, lines int, units ...string) ([]byte, error) {
	args := []string{"--boot", "--no-pager", "--output=short-iso", fmt.Sprintf("--lines=%d", lines)}
	for _, unit := range units {
		args = append(args, "--unit="+unit)
	}
	return run(ctx, "/usr/bin/journalctl", args...)
}

// StatusOf is what systemctl status says of units, whatever their state.
func StatusOf(ctx context.Context, units ...string) ([]byte, error) {
	out, err := run(ctx, "/usr/bin/systemctl", append([]string{"status", "--no-pager", "--full", "--lines=0", "--all", "--"}, units...)...)
	if len(out) > 0 {
		err = nil // a unit that does not run is an exit code, too
	}
	return out, err
}

// Stop stops units, and waits until they have stopped. One that is not installed
// is fine.
func Stop(ctx context.Context, units ...string) error {
	var installed []string
	for _, unit := range units {
		properties, err := Show(ctx, unit)
		if err != nil {
			return err
		}
		if properties["LoadState"] != "not-found" {
			installed = append(installed, unit)
		}
	}
	if len(installed) == 0 {
		return nil
	}
	_, err := systemctl(ctx, append([]string{"stop", "--"}, installed...)...)
	return err
}

func systemctl(ctx context.Context, args ...string) (string, error) {
	out, err := run(ctx, "/usr/bin/systemctl", args...)
	return string(out), err
}

// run runs a command of systemd by its path: the caller may be root with any
// PATH.
func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Env = []string{"LC_ALL=C.UTF-8", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"}
	out, err := c.Output()
	if err == nil {
		return out, nil
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && len(exit.Stderr) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(string(exit.Stderr)), " "))
	}
	return out, fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
}
