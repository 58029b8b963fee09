//go:build amd64 || arm64

package powercut

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// launcher is the name under which a test's binary runs itself.
const launcher = "powercut-launcher"

// Launch is for the beginning of a TestMain: where the test's binary runs as the
// launcher of a traced program, it becomes that program and does not return.
func Launch() {
	if os.Args[0] != launcher {
		return
	}
	fmt.Fprintf(os.Stderr, "cannot launch %s under a filter: %v\n", os.Args[1], launch(os.Args[1:]))
	os.Exit(launchFailed)
}

// launchFailed is the exit code of a launcher that could not become the program.
const launchFailed = 125

// launch has the kernel tell the tracer of the calls that it counts, and of no
// other: a program that is stopped at each of its calls takes many times as long.
func launch(args []string) error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot give up new privileges: %w", err)
	}
	filter := filter()
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("cannot set the filter: %w", errno)
	}
	return errors.Join(errors.New("cannot execute it"), syscall.Exec(args[0], args, os.Environ()))
}

// filter is the program of seccomp: calls of another architecture pass.
func filter() []unix.SockFilter {
	const (
		offsetNumber = 0 // in struct seccomp_data
		offsetArch   = 4
	)
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	result := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	equal := func(k uint32, then, otherwise uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: then, Jf: otherwise}
	}
	numbers := slices.Sorted(maps.Keys(calls))
	program := []unix.SockFilter{load(offsetArch), equal(auditArch, 1, 0), result(unix.SECCOMP_RET_ALLOW), load(offsetNumber)}
	for i, number := range numbers {
		program = append(program, equal(uint32(number), uint8(len(numbers)-i), 0))
	}
	return append(program, result(unix.SECCOMP_RET_ALLOW), result(unix.SECCOMP_RET_TRACE))
}
