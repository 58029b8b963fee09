package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// tools are what has to be installed, and Debian's package of each.
var tools = map[string]string{
	"swtpm": "swtpm", "swtpm_setup": "swtpm-tools", "swtpm_localca": "swtpm-tools",
	"bash": "bash", "strace": "strace", "openssl": "openssl", "curl": "curl",
	"tpm2_getcap": "tpm2-tools", "tpm2_ptool": "libtpm2-pkcs11-tools",
}

func lookTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		hint := ""
		if pkg := tools[name]; pkg != "" {
			hint = fmt.Sprintf(" (Debian package %s)", pkg)
		}
		return "", fmt.Errorf("cannot find %s%s: %w", name, hint, err)
	}
	return path, nil
}

// environment is what units of systemd get. A developer's longer PATH would
// make the search for each tool of the reference longer than on a device.
var environment = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
}

// prepare makes ready a process in a group of its own. When ctx ends, the whole
// group is killed: nothing but what this process has started is in it.
func prepare(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	path, err := lookTool(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	cmd.Env = environment
	return cmd, nil
}

// background is a process that serves the others.
type background struct {
	name string
	log  string
	stop func()
	done <-chan struct{}
}

// start starts a server. Its output goes to the file log.
func start(ctx context.Context, log, name string, args ...string) (*background, error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd, err := prepare(ctx, name, args...)
	if err != nil {
		cancel()
		return nil, err
	}
	f, err := os.Create(log)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it ends by a signal
		close(done)
	}()
	return &background{name, log, func() { cancel(); <-done }, done}, nil
}

// await waits until ready says so. It's an error if the server ends before, or
// takes too long.
func (b *background) await(ctx context.Context, ready func() bool) error {
	limit := time.After(10 * time.Second)
	for !ready() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.done:
			return b.failed(errors.New("it has ended"))
		case <-limit:
			return b.failed(errors.New("it does not listen"))
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

func (b *background) failed(why error) error {
	out, _ := os.ReadFile(b.log) // the more is known the better
	return fmt.Errorf("cannot start %s: %w\n%s", b.name, why, strings.TrimSpace(string(out)))
}
