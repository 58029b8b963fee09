//go:build boot

package boottest

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
)

// TestMain runs the tests as the first process of a PID namespace, with mounts
// of their own: whatever a test starts or mounts is gone when they end, however
// they end.
func TestMain(m *testing.M) {
	flag.Parse()
	const inside = "TPM2CLOUD_BOOTTEST"
	if os.Getenv(inside) == "" {
		os.Exit(inNamespace(inside))
	}
	if err := mounts(); err != nil {
		fmt.Fprintln(os.Stderr, "boottest:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := report(); err != nil {
		fmt.Fprintln(os.Stderr, "boottest:", err)
		code = 1
	}
	os.Exit(code)
}

// inNamespace runs this program again, and gives its exit code.
func inNamespace(mark string) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "boottest: cannot start machines: only root may; run this as root")
		return 1
	}
	// The kernel sends the signal when this thread ends.
	runtime.LockOSThread()
	c := exec.Command(os.Args[0], os.Args[1:]...)
	c.Env = append(os.Environ(), mark+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := c.Run(); err != nil {
		if c.ProcessState != nil && c.ProcessState.ExitCode() > 0 {
			return c.ProcessState.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "boottest: cannot run the tests in a namespace:", err)
		return 1
	}
	return 0
}

// mounts are what the tests have for themselves: /proc of the namespace, a /run
// that systemd-nspawn may use and that holds the machines, and the one hierarchy
// of control groups that every kernel has.
func mounts() error {
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"none", "/", "", syscall.MS_REC | syscall.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"tmpfs", "/run", "tmpfs", 0},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0},
	} {
		if err := syscall.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("cannot mount %s: %w", m.target, err)
		}
	}
	return nil
}
