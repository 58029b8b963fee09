package main

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
	"syscall"
	"time"
)

// sample is what one run of a contender took.
type sample struct {
	wall, cpu time.Duration
	programs  map[string]time.Duration // wall time of each
	commands  []Command
}

// measure runs programs one after the other. The CPU time is that of each and
// of all processes that it has waited for; the TPM, the proxy and the EST
// server are processes of others.
func measure(b *board, cmds []*exec.Cmd) (sample, error) {
	r := sample{programs: make(map[string]time.Duration)}
	if _, err := b.proxy.Take(); err != nil {
		return sample{}, err
	}
	for _, cmd := range cmds {
		begin := time.Now()
		if err := quietly(cmd); err != nil {
			_, why := b.proxy.Take()
			return sample{}, errors.Join(err, why)
		}
		wall := time.Since(begin)
		r.wall += wall
		r.cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		r.programs[filepath.Base(cmd.Path)] = wall
	}
	var err error
	r.commands, err = b.proxy.Take()
	return r, err
}

// quietly runs a program and shows what it wrote only if it fails.
func quietly(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	return failure(cmd, err, out)
}

func failure(cmd *exec.Cmd, err error, out []byte) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cannot run %s: %w\n%s", filepath.Base(cmd.Path), err, bytes.TrimSpace(out))
}

// countProcesses runs programs below strace and counts what they execute. The
// time that this takes means nothing.
func countProcesses(ctx context.Context, b *board, cmds []*exec.Cmd) (int, error) {
	count := 0
	for _, cmd := range cmds {
		log := filepath.Join(b.dir, "execve")
		traced, err := prepare(ctx, "strace", append([]string{"-f", "--seccomp-bpf", "-qq",
			"-e", "trace=execve,execveat", "-e", "signal=none", "-o", log, "--"}, cmd.Args...)...)
		if err != nil {
			return 0, err
		}
		traced.Env = cmd.Env
		if err := quietly(traced); err != nil {
			return 0, err
		}
		data, err := os.ReadFile(log)
		if err != nil {
			return 0, fmt.Errorf("cannot count processes: %w", err)
		}
		count += countExecs(string(data))
	}
	return count, nil
}

// countExecs counts the calls in strace's output that started a program.
func countExecs(trace string) int {
	n := 0
	for line := range strings.Lines(trace) {
		if strings.Contains(line, "execve") && strings.HasSuffix(strings.TrimSpace(line), " = 0") {
			n++
		}
	}
	return n
}

// peakRSS runs programs and returns how much memory each of them used at most,
// in bytes. It asks the kernel while they run, because the figure that wait4
// has afterwards begins with the memory of the process that forked.
func peakRSS(cmds []*exec.Cmd) (map[string]int, error) {
	peaks := make(map[string]int)
	for _, cmd := range cmds {
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			return nil, failure(cmd, err, nil)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		status := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "status")
		peak := 0
		for running := true; running; {
			select {
			case err := <-done:
				if err != nil {
					return nil, failure(cmd, err, out.Bytes())
				}
				running = false
			case <-time.After(time.Millisecond):
				if data, err := os.ReadFile(status); err == nil { // else it has ended
					peak = max(peak, highWater(string(data)))
				}
			}
		}
		peaks[filepath.Base(cmd.Path)] = peak
	}
	return peaks, nil
}

// highWater is the line "VmHWM:" of a /proc/PID/status file, in bytes.
func highWater(status string) int {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			if err != nil {
				return 0
			}
			return kb * 1024
		}
	}
	return 0
}

// file is what tells whether somebody has written a file.
type file struct {
	size, modified int64
	inode          uint64
	mode           fs.FileMode
}

// snapshot looks at all files below root but those in /run, which is in memory and
// where a program leaves how its run went. Directories are not compared: the
// PKCS#11 library makes and removes its lock file even when it only reads.
func snapshot(root string) (map[string]file, error) {
	files := make(map[string]file)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path == filepath.Join(root, "run") {
			return fs.SkipDir
		}
		if err != nil || d.IsDir() || d.Type() == fs.ModeSocket {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.ErrUnsupported
		}
		files[path] = file{info.Size(), info.ModTime().UnixNano(), st.Ino, info.Mode()}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot look at the files of the board: %w", err)
	}
	return files, nil
}

// second is what a run found to do with everything present.
type second struct {
	sample
	written  []string // files that were written, made or removed
	requests int
	tpm      bool // the TPM's permanent state has changed
}

// runAgain boots a board that has its identities and runs our programs.
func runAgain(ctx context.Context, b *board, bin string, l *lab) (second, error) {
	if err := b.reboot(ctx); err != nil {
		return second{}, err
	}
	cmds, err := again(ctx, b, bin)
	if err != nil {
		return second{}, err
	}
	files, err1 := snapshot(b.root)
	requests, err2 := l.requests()
	tpm, err3 := b.tpm.digest()
	if err := errors.Join(err1, err2, err3); err != nil {
		return second{}, err
	}
	r, err := measure(b, cmds)
	if err != nil {
		return second{}, err
	}
	filesNow, err1 := snapshot(b.root)
	requestsNow, err2 := l.requests()
	tpmNow, err3 := b.tpm.digest()
	if err := errors.Join(err1, err2, err3); err != nil {
		return second{}, err
	}
	return second{r, changed(b.root, files, filesNow), requestsNow - requests, tpm != tpmNow}, nil
}

// changed lists what differs, in no order.
func changed(root string, before, after map[string]file) []string {
	var paths []string
	for path, f := range after {
		if before[path] != f {
			paths = append(paths, path[len(root):])
		}
	}
	for path := range before {
		if _, ok := after[path]; !ok {
			paths = append(paths, path[len(root):])
		}
	}
	return paths
}
