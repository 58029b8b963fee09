//go:build boot

package boottest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Machine is a board with systemd in a container: a disk, a TPM if one was
// inserted, the network of this machine. It has no kernel and no device nodes of
// its own; the tests in QEMU do.
type Machine struct {
	Arch string
	Root string // its disk
	TPM  *TPM

	t       testing.TB
	dir     string
	group   string // its control group
	nspawn  *exec.Cmd
	ended   chan struct{} // closed when nspawn has ended
	leader  int           // its first process
	console string
}

// lowers are the golden disks, by architecture.
var lowers sync.Map

// goldenDisk is what overlayfs takes as lowerdir=.
func goldenDisk(t testing.TB, arch string) string {
	t.Helper()
	once, _ := lowers.LoadOrStore(arch, sync.OnceValues(func() (string, error) {
		c := exec.Command(filepath.Join(top, "image/rootfs"), append([]string{arch}, packages(t, arch)...)...)
		c.Stderr = os.Stderr
		out, err := c.Output()
		return strings.TrimSpace(string(out)), err
	}))
	lower, err := once.(func() (string, error))()
	must(t, err)
	return lower
}

// NewMachine makes a machine with a fresh copy of the golden disk.
func NewMachine(t testing.TB, arch string) *Machine {
	t.Helper()
	m := &Machine{Arch: arch, t: t, dir: scratch("machine")}
	m.group = filepath.Join("/sys/fs/cgroup", "tpm2cloud-"+filepath.Base(m.dir))
	m.console = filepath.Join(m.dir, "console")
	m.Reflash()
	t.Cleanup(func() {
		if m.nspawn != nil {
			m.Cut()
		}
		if t.Failed() {
			keep(t, filepath.Base(m.dir)+".journal", JournalText(m.Root))
			if data, err := os.ReadFile(m.console); err == nil {
				keep(t, filepath.Base(m.dir)+".console", string(data))
			}
		}
		m.unmount()
		os.RemoveAll(m.dir)
	})
	return m
}

// Reflash writes the golden disk anew: nothing that was on it stays.
func (m *Machine) Reflash() {
	m.t.Helper()
	m.unmount()
	upper, work := filepath.Join(m.dir, "upper"), filepath.Join(m.dir, "work")
	m.Root = filepath.Join(m.dir, "root")
	must(m.t, errors.Join(os.RemoveAll(upper), os.RemoveAll(work)))
	must(m.t, errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755), os.MkdirAll(m.Root, 0o755)))
	must(m.t, syscall.Mount("overlay", m.Root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", goldenDisk(m.t, m.Arch), upper, work)))
}

func (m *Machine) unmount() {
	if m.Root != "" {
		syscall.Unmount(m.Root, syscall.MNT_DETACH)
	}
}

// tpmDropIn says where the TPM is: there are no device nodes in a container.
const tpmDropIn = "/etc/tpm2cloud/tpm2cloud.toml.d/50-tpm.toml"

// Put writes files to its disk, while it is off or on.
func (m *Machine) Put(files Files) {
	m.t.Helper()
	put(m.t, m.Root, files)
}

// Insert gives it a TPM.
func (m *Machine) Insert(tpm *TPM) {
	m.t.Helper()
	m.TPM = tpm
	m.Put(Files{tpmDropIn: {Data: "[tpm]\ndevice = \"unix:/run/swtpm/tpm.sock\"\n", Mode: 0o644}})
}

// PowerOn starts it and waits until its systemd can be spoken to.
func (m *Machine) PowerOn() {
	m.t.Helper()
	args := []string{"--directory=" + m.Root, "--boot", "--register=no", "--keep-unit", "--console=pipe", "--machine=board", "--link-journal=no"}
	if m.TPM != nil {
		m.powerTPM()
		args = append(args, "--bind="+filepath.Dir(m.TPM.Socket)+":/run/swtpm")
	}
	if m.Arch != "amd64" {
		// qemu-user does not know the system call.
		args = append(args, "--setenv=SYSTEMD_SECCOMP=0")
	}
	must(m.t, os.Mkdir(m.group, 0o755))
	group, err := os.Open(m.group)
	must(m.t, err)
	defer group.Close()
	console, err := os.OpenFile(m.console, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	must(m.t, err)
	defer console.Close()
	m.nspawn = exec.Command("systemd-nspawn", args...)
	m.nspawn.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	m.nspawn.Stdout, m.nspawn.Stderr = console, console
	// One kill ends all that is in the group.
	m.nspawn.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	must(m.t, m.nspawn.Start())
	m.ended = make(chan struct{})
	go func(c *exec.Cmd, ended chan struct{}) {
		c.Wait()
		close(ended)
	}(m.nspawn, m.ended)
	await(m.t, 120*time.Second, "systemd of the machine listens", func() bool {
		if !m.running() {
			m.t.Fatalf("the machine does not start: %s", read(m.t, m.console))
		}
		m.leader = m.firstProcess()
		_, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/systemd/private", m.leader))
		return m.leader != 0 && err == nil
	})
}

// powerTPM gives its TPM power, and the group that may use it.
func (m *Machine) powerTPM() {
	m.t.Helper()
	m.TPM.On(m.t)
	// The PKCS#11 library sets the locality through the control socket.
	for _, socket := range []string{m.TPM.Socket, m.TPM.Socket + ".ctrl"} {
		must(m.t, os.Chown(socket, 0, m.gid("tss")))
		must(m.t, os.Chmod(socket, 0o660))
	}
}

// gid is the number of a group of the machine.
func (m *Machine) gid(name string) int {
	m.t.Helper()
	for _, line := range lines(read(m.t, filepath.Join(m.Root, "etc/group"))) {
		if f := strings.Split(line, ":"); f[0] == name {
			n, err := strconv.Atoi(f[2])
			must(m.t, err)
			return n
		}
	}
	m.t.Fatalf("the machine has no group %s", name)
	return 0
}

// firstProcess is the process in the control group that is number 1 in the
// machine, 0 if there is none yet.
func (m *Machine) firstProcess() (found int) {
	filepath.WalkDir(m.group, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil
		}
		data, _ := os.ReadFile(path)
		for _, pid := range lines(string(data)) {
			status, _ := os.ReadFile("/proc/" + pid + "/status")
			for _, line := range lines(string(status)) {
				f := strings.Fields(line)
				if f[0] == "NSpid:" && len(f) > 2 && f[len(f)-1] == "1" {
					found, _ = strconv.Atoi(pid)
				}
			}
		}
		return nil
	})
	return found
}

func (m *Machine) running() bool {
	select {
	case <-m.ended:
		return false
	default:
		return true
	}
}

// Boot starts it, and waits until systemd has done all that its boot asks for.
func (m *Machine) Boot() {
	m.t.Helper()
	m.PowerOn()
	m.Settle()
}

// Settle waits until nothing of the boot is left to be done.
func (m *Machine) Settle() {
	m.t.Helper()
	m.Try("systemctl", "is-system-running", "--wait")
}

// Try runs a command in the machine; an exit code above zero is no failure.
func (m *Machine) Try(args ...string) (out string, code int) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(m.leader), "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root", "--wd", "--"}, args...)...)
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"}
	var b bytes.Buffer
	c.Stdout, c.Stderr = &b, &b
	err := c.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && ctx.Err() == nil && exit.ExitCode() > 0:
		return b.String(), exit.ExitCode()
	case err != nil:
		m.t.Fatalf("in the machine: %s: %v\n%s", strings.Join(args, " "), err, b.String())
	}
	return b.String(), 0
}

// Run runs a command in the machine.
func (m *Machine) Run(args ...string) string {
	m.t.Helper()
	out, code := m.Try(args...)
	if code != 0 {
		m.t.Fatalf("in the machine: %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// Show are properties of a unit.
func (m *Machine) Show(unit string) map[string]string {
	m.t.Helper()
	values := map[string]string{}
	for _, line := range lines(m.Run("systemctl", "show", unit)) {
		name, value, _ := strings.Cut(line, "=")
		values[name] = value
	}
	return values
}

// Expect demands states of units: "active", "inactive", or "failed 78" with the
// exit code of the program.
func (m *Machine) Expect(states map[string]string) {
	m.t.Helper()
	for unit, want := range states {
		show := m.Show(unit)
		got := show["ActiveState"]
		if got == "failed" {
			got += " " + show["ExecMainStatus"]
		}
		if got != want {
			m.t.Errorf("%s is %s, and should be %s: %s", unit, got, want, show["StatusText"])
		}
	}
}

// Halt shuts it down in order; its TPM still has power.
func (m *Machine) Halt() {
	m.t.Helper()
	m.Try("systemctl", "poweroff")
	select {
	case <-m.ended:
	case <-time.After(90 * time.Second):
		m.t.Errorf("the machine does not shut down")
	}
	m.end()
}

// PowerOff shuts it down in order, and takes the power.
func (m *Machine) PowerOff() {
	m.t.Helper()
	m.Halt()
	if m.TPM != nil {
		// As a kernel's driver does; else what was in use counts as a failed
		// authorisation at the next boot.
		m.TPM.Tool(m.t, "tpm2_shutdown", "-c")
		m.TPM.Cut()
	}
}

// Cut takes the power: nobody in there, and not its TPM, does anything more.
func (m *Machine) Cut() {
	m.t.Helper()
	must(m.t, os.WriteFile(filepath.Join(m.group, "cgroup.kill"), []byte("1"), 0o644))
	if m.TPM != nil {
		m.TPM.Cut()
	}
	m.end()
}

// end waits for nspawn, and removes what it leaves.
func (m *Machine) end() {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.group, "cgroup.kill"), []byte("1"), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.t.Fatal(err)
	}
	<-m.ended
	m.nspawn, m.leader = nil, 0
	// The groups are of those that are gone; the innermost goes first.
	await(m.t, 10*time.Second, "the machine's control groups are empty", func() bool {
		var groups []string
		filepath.WalkDir(m.group, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				groups = append(groups, path)
			}
			return nil
		})
		for i := len(groups) - 1; i >= 0; i-- {
			syscall.Rmdir(groups[i])
		}
		_, err := os.Stat(m.group)
		return errors.Is(err, fs.ErrNotExist)
	})
}

// Journal are entries of its journal, while it is on or off.
func (m *Machine) Journal(matches ...string) []Entry {
	m.t.Helper()
	return Journal(m.t, m.Root, matches...)
}
