package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// peer is the process at the other end.
func peer(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("cannot tell who connects: %w", err)
	}
	var cred *unix.Ucred
	var optErr error
	err = raw.Control(func(fd uintptr) {
		cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, optErr); err != nil {
		return 0, fmt.Errorf("cannot tell who connects: %w", err)
	}
	return int(cred.Pid), nil
}

// blockingSocket tells a C library's TPM connection from that of Go code in
// the same process, while the process waits for an answer. Go's net package
// makes sockets non-blocking, always; tpm2-tss leaves them as socket(2) makes
// them. The wire has no such mark: on it, both open one connection for each
// command, and the control connection of tpm2-tss says when the library
// begins but not when it ends. A library that kept its connection open would be
// taken for the sender of all that follows.
func blockingSocket(pid int) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
		if err != nil || !strings.HasPrefix(target, "socket:") {
			continue
		}
		info, err := os.ReadFile(filepath.Join(dir, "fdinfo", fd.Name()))
		if err == nil && fdFlags(string(info))&unix.O_NONBLOCK == 0 {
			return true
		}
	}
	return false
}

// fdFlags is the line "flags:" of a /proc/PID/fdinfo file, which is octal.
func fdFlags(info string) uint64 {
	for line := range strings.Lines(info) {
		if rest, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(rest), 8, 64)
			if err != nil {
				return 0
			}
			return flags
		}
	}
	return 0
}

// process is a process that may end. Its number alone would not do: the kernel
// gives it to another in time.
type process struct{ fd int }

func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return &process{-1}, nil // gone already
	}
	if err != nil {
		return nil, fmt.Errorf("cannot watch process %d: %w", pid, err)
	}
	return &process{fd}, nil
}

// ended says whether it has: then its descriptor is readable, also while its
// parent has not yet waited for it.
func (p *process) ended() bool {
	if p.fd < 0 {
		return true
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, 0)
	return n == 1 && err == nil
}

func (p *process) close() {
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
}
