//go:build amd64 || arm64

package powercut

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Program is a program that is traced: all its threads, and all that it starts.
type Program struct {
	Args, Env []string // Args[0] is the path
	Output    *os.File // standard output and standard error

	// Operations on files below Root, but not on those in Skip, are counted.
	Root string
	Skip []string
	// Disk is told of what is synced; nil: nobody is.
	Disk *Disk
	// Cut is where the program is killed.
	Cut Point

	// Operations are those that were begun, in order.
	Operations []Operation

	pid    int
	err    error
	status syscall.WaitStatus
	done   chan struct{}
}

// Operation is a call that may change the disk.
type Operation struct {
	Call string
	Path string // relative to the root
}

func (o Operation) String() string { return o.Call + " " + o.Path }

// Refused says why this system lets no program be traced, or nothing.
func Refused() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	p := &Program{Args: []string{"/bin/true"}, Env: os.Environ(), Output: null, Root: "/nowhere"}
	if err := p.Start(); err != nil {
		return err
	}
	status, err := p.Wait()
	if err == nil && status.ExitStatus() != 0 {
		err = fmt.Errorf("cannot trace %s: it ended with %#x", p.Args[0], status)
	}
	return err
}

// Start starts the program; Wait must follow.
func (p *Program) Start() error {
	p.done = make(chan struct{})
	started := make(chan error, 1)
	// Everything that is asked of a traced process must come from one thread.
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := p.start()
		started <- err
		if err == nil {
			p.err = p.trace()
		}
	}()
	return <-started
}

// Kill ends the program and all that it has started, as a loss of power does.
func (p *Program) Kill() { _ = syscall.Kill(-p.pid, syscall.SIGKILL) }

// Wait waits for the end of the program.
func (p *Program) Wait() (syscall.WaitStatus, error) {
	<-p.done
	return p.status, p.err
}

func (p *Program) start() (err error) {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find the launcher: %w", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	output := p.Output.Fd()
	p.pid, err = syscall.ForkExec(self, append([]string{launcher}, p.Args...), &syscall.ProcAttr{
		Env: p.Env, Files: []uintptr{null.Fd(), output, output},
		Sys: &syscall.SysProcAttr{Ptrace: true, Setpgid: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return fmt.Errorf("cannot trace %s: %w", p.Args[0], err)
	}
	var status syscall.WaitStatus
	if _, err := wait(p.pid, &status); err != nil || !status.Stopped() {
		return fmt.Errorf("cannot trace %s: it did not stop at its start (%v, %#x)", p.Args[0], err, status)
	}
	err = syscall.PtraceSetOptions(p.pid, unix.PTRACE_O_EXITKILL|unix.PTRACE_O_TRACESECCOMP|unix.PTRACE_O_TRACESYSGOOD|
		unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACEFORK|unix.PTRACE_O_TRACEVFORK|unix.PTRACE_O_TRACEEXEC)
	if err == nil {
		err = syscall.PtraceCont(p.pid, 0)
	}
	if err != nil {
		p.Kill()
		_, _ = wait(p.pid, &status)
		return fmt.Errorf("cannot trace %s: %w", p.Args[0], err)
	}
	return nil
}

// wait waits for a process that this thread traces, or with -pid for any of its
// group: the test has other children, which others wait for.
func wait(pid int, status *syscall.WaitStatus) (int, error) {
	for {
		pid, err := syscall.Wait4(pid, status, unix.WALL|unix.WNOTHREAD, nil)
		if err != syscall.EINTR {
			return pid, err
		}
	}
}

// trace follows all threads until the last has ended.
func (p *Program) trace() error {
	var failed error
	known := map[int]bool{p.pid: true}
	under := map[int]call{} // by thread: the call that it is in
	for {
		var status syscall.WaitStatus
		tid, err := wait(-p.pid, &status)
		if err == syscall.ECHILD {
			return failed
		}
		if err != nil {
			p.Kill()
			return errors.Join(failed, fmt.Errorf("cannot wait for %s: %w", p.Args[0], err))
		}
		if !status.Stopped() {
			if tid == p.pid {
				p.status = status
			}
			delete(known, tid)
			continue
		}
		first := !known[tid]
		known[tid] = true
		request, signal := unix.PTRACE_CONT, 0
		switch sig := status.StopSignal(); {
		case sig == syscall.SIGTRAP|0x80: // the end of a call
			c := under[tid]
			delete(under, tid)
			err = p.ended(tid, c)
		case sig == syscall.SIGTRAP && status.TrapCause() == unix.PTRACE_EVENT_SECCOMP:
			var c call
			var counted bool
			if c, counted, err = p.begun(tid); counted {
				under[tid], request = c, unix.PTRACE_SYSCALL
			}
		case sig == syscall.SIGTRAP && status.TrapCause() > 0: // clone, fork, exec
		case sig == syscall.SIGSTOP && first: // each new thread begins with it
		default:
			signal = int(sig)
		}
		// One that was killed meanwhile is not there any more.
		if err != nil && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
			p.Kill()
		}
		_, _, _ = unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), 0, uintptr(signal), 0, 0)
	}
}

// info is struct ptrace_syscall_info of the kernel, as far as it is used.
type info struct {
	Op    uint8
	_     [3]uint8
	Arch  uint32
	_, _  uint64 // instruction and stack pointer
	Entry struct {
		Number uint64 // at the end of a call: its result
		Args   [6]uint64
		_      uint64
	}
}

func syscallInfo(tid int) (*info, error) {
	var i info
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(i), uintptr(unsafe.Pointer(&i)), 0, 0)
	if errno != 0 {
		return nil, fmt.Errorf("cannot look at a call: %w", errno)
	}
	return &i, nil
}

// begun looks at a call before the kernel does it, and says whether it counts.
func (p *Program) begun(tid int) (c call, counted bool, err error) {
	i, err := syscallInfo(tid)
	if err != nil {
		return call{}, false, err
	}
	c, known := calls[i.Entry.Number]
	if !known {
		return c, false, nil
	}
	path, err := p.about(tid, c, i.Entry.Args)
	if err != nil || path == "" {
		return c, false, err
	}
	p.Operations = append(p.Operations, Operation{c.name, path})
	if p.Cut.hits(len(p.Operations), false) {
		p.Kill()
	}
	c.args, c.number = i.Entry.Args, len(p.Operations)
	return c, true, nil
}

func (p *Program) ended(tid int, c call) error {
	i, err := syscallInfo(tid)
	if err != nil {
		return err
	}
	if c.sync && i.Entry.Number == 0 && p.Disk != nil {
		if err := p.Disk.Synced(descriptor(tid, c.args[0])); err != nil {
			return err
		}
	}
	if p.Cut.hits(c.number, true) {
		p.Kill()
	}
	return nil
}

func descriptor(tid int, fd uint64) string { return fmt.Sprintf("/proc/%d/fd/%d", tid, int32(fd)) }

// about is the path of what a call is about, relative to the root, or "".
func (p *Program) about(tid int, c call, args [6]uint64) (string, error) {
	var path string
	var err error
	switch {
	case c.fd > 0:
		fd := descriptor(tid, args[c.fd-1])
		path, err = os.Readlink(fd)
		if info, serr := os.Stat(fd); serr != nil || !info.Mode().IsRegular() && !info.IsDir() {
			return "", nil
		}
		path = strings.TrimSuffix(path, " (deleted)")
	case c.path == atCWD:
		return "", fmt.Errorf("the program calls %s, which is not followed", c.name)
	default:
		if creates, err := p.creates(tid, c, args); err != nil || !creates {
			return "", err
		}
		path, err = p.pathOf(tid, c, args)
	}
	if err != nil {
		return "", err
	}
	rel, err := filepath.Rel(p.Root, path)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") || below(rel, p.Skip) {
		return "", nil
	}
	return rel, nil
}

// creates says whether a call that opens a file may make or empty it; others
// always may.
func (p *Program) creates(tid int, c call, args [6]uint64) (bool, error) {
	flags := uint64(unix.O_CREAT)
	switch {
	case c.how != 0:
		data, err := memory(tid, args[c.how], 8)
		if err != nil || len(data) < 8 {
			return false, err
		}
		flags = binary.NativeEndian.Uint64(data)
	case c.flags != 0:
		flags = args[c.flags]
	}
	return flags&(unix.O_CREAT|unix.O_TRUNC) != 0, nil
}

func (p *Program) pathOf(tid int, c call, args [6]uint64) (string, error) {
	data, err := memory(tid, args[c.path], unix.PathMax)
	if err != nil {
		return "", err
	}
	name, _, _ := bytes.Cut(data, []byte{0})
	path := string(name)
	if filepath.IsAbs(path) {
		return filepath.Clean(path), nil
	}
	from := fmt.Sprintf("/proc/%d/cwd", tid)
	if c.dir != atCWD && int32(args[c.dir]) != unix.AT_FDCWD {
		from = descriptor(tid, args[c.dir])
	}
	dir, err := os.Readlink(from)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, path), nil
}

// memory reads at most n bytes of a stopped thread, up to a hole.
func memory(tid int, at uint64, n int) ([]byte, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", tid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, n)
	got, err := f.ReadAt(data, int64(at))
	if got == 0 && err != nil {
		return nil, err
	}
	return data[:got], nil
}

// below says whether a path is one of those, or below one.
func below(name string, tops []string) bool {
	return slices.ContainsFunc(tops, func(top string) bool {
		return name == top || strings.HasPrefix(name, top+"/")
	})
}
