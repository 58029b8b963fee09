// Command bench measures what a device takes to get its identities, side by
// side with the way of the reference scripts, and compares both with limits.
//
//	go run ./scripts/bench [flags]
//
// Both contenders work on equal boards: a copy of one TPM (swtpm, fresh from its
// vendor), one EST server (tpm2cloud-lab), and a proxy before the TPM that counts
// commands. They take turns, so that whatever else the machine does hits both.
// Figures are medians.
//
// It exits with 1 if a limit is not met, and with 2 if it cannot measure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
)

type options struct {
	runs           int
	bin, out, keep string
	kinds          bool
}

func main() {
	var o options
	flag.IntVar(&o.runs, "n", 5, "`runs` of each contender")
	flag.StringVar(&o.bin, "bin", "build/bin", "`directory` of the built programs")
	flag.StringVar(&o.out, "out", "build/bench.json", "`file` for the figures")
	flag.StringVar(&o.keep, "keep", "", "keep all boards and logs in this new `directory`; its path must be short")
	flag.BoolVar(&o.kinds, "kinds", false, "list the TPM commands by kind")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, o, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, o options, stdout, stderr io.Writer) int {
	met, err := bench(ctx, o, stdout, stderr)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "error: interrupted")
		return 2
	case err != nil:
		fmt.Fprintln(stderr, "error:", err)
		return 2
	case !met:
		return 1
	}
	return 0
}

func bench(ctx context.Context, o options, stdout, progress io.Writer) (met bool, err error) {
	if o.runs < 1 || flag.NArg() != 0 {
		return false, errors.New("cannot measure: give flags only, and at least one run")
	}
	if err := checkTools(o.bin); err != nil {
		return false, err
	}
	dir, remove, err := workDir(o.keep)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, remove()) }()

	f, err := measureAll(ctx, o, dir, progress)
	if err != nil {
		return false, err
	}
	if err := f.write(o.out); err != nil {
		return false, err
	}
	f.print(stdout, o.kinds)
	return f.met(), nil
}

func checkTools(bin string) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(tools)) {
		_, err := lookTool(name)
		errs = append(errs, err)
	}
	for _, name := range append([]string{labProgram}, programs...) {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			errs = append(errs, fmt.Errorf("cannot find a program of ours (make build): %w", err))
		}
	}
	return errors.Join(errs...)
}

// workDir is where everything happens. It lies directly in the directory for
// temporary files, because paths of sockets must be short.
func workDir(keep string) (dir string, remove func() error, err error) {
	if keep == "" {
		dir, err = os.MkdirTemp("", "bench")
		remove = func() error { return os.RemoveAll(dir) }
	} else if dir, err = filepath.Abs(keep); err == nil {
		err = os.Mkdir(dir, 0o700)
		remove = func() error { return nil }
	}
	if err != nil {
		return "", nil, fmt.Errorf("cannot make a work directory: %w", err)
	}
	const longest = "/999/root" + tpmSocket + controlSuffix
	if len(dir+longest) >= len(syscall.RawSockaddrUnix{}.Path) {
		err := fmt.Errorf("cannot work in %s: its path is too long for sockets below it", dir)
		return "", nil, errors.Join(err, os.Remove(dir))
	}
	return dir, remove, nil
}

// measureAll does everything that takes time.
func measureAll(ctx context.Context, o options, dir string, progress io.Writer) (*figures, error) {
	v, err := manufacture(ctx, filepath.Join(dir, "vendor"))
	if err != nil {
		return nil, err
	}
	l, err := startLab(ctx, filepath.Join(o.bin, labProgram), filepath.Join(dir, "lab"))
	if err != nil {
		return nil, err
	}
	defer l.stop()

	f := &figures{results: []result{
		{contender: reference(v, l)}, {contender: ours(o.bin, v, l)}, {contender: oursRSA(o.bin, v, l)},
	}}
	w := &workshop{ctx: ctx, dir: dir, bin: o.bin, vendor: v, lab: l}
	for i := range f.results {
		r := &f.results[i]
		fmt.Fprintf(progress, "%s: counting processes\n", r.name)
		if err := w.inspect(r); err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
	}
	for n := range o.runs {
		for i := range f.results {
			r := &f.results[i]
			if err := w.time(r); err != nil {
				return nil, fmt.Errorf("%s: %w", r.name, err)
			}
			fmt.Fprintf(progress, "%s: run %d of %d: %.2f s\n", r.name, n+1, o.runs, r.first[n].wall.Seconds())
		}
	}
	f.binaries, err = binarySizes(o.bin)
	return f, err
}
