package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// As in the Makefile, which has the reasons; a test compares them.
const tags = "libsqlite3,netgo,osusergo,nethttpomithttp2"

// As Debian compiles C: lengths that are known are checked, and the stack is
// guarded. Without debugging data, which would name folders.
const cflags = "-O2 -g0 -D_FORTIFY_SOURCE=2 -fstack-protector-strong"

// program is a command of this repository.
type program struct {
	name   string
	module string   // folder of its module
	path   string   // of its package, in there
	cgo    bool     // it loads a PKCS#11 library
	only   []string // architectures; nil is all of them
	small  bool     // it is rather small than quick
}

var programs = []program{
	{name: "tpm2cloud-idevid", module: ".", path: "./cmd/tpm2cloud-idevid"},
	{name: "tpm2cloud-ldevid", module: ".", path: "./cmd/tpm2cloud-ldevid", cgo: true, small: true},
	{name: "tpm2cloud-edgecfg", module: ".", path: "./cmd/tpm2cloud-edgecfg"},
	{name: "tpm2cloud", module: ".", path: "./cmd/tpm2cloud", cgo: true, small: true},
	{name: "tpm2cloud-lab", module: "cmd/tpm2cloud-lab", path: ".", cgo: true},
	// It runs where fleets are managed, and that is on no 32-bit board; Azure's
	// SDK takes longer to compile than all the others together.
	{name: "tpm2cloud-azure", module: "cmd/tpm2cloud-azure", path: ".", only: []string{"amd64", "arm64"}},
}

// builtFor tells whether there is such a program for an architecture.
func (p program) builtFor(arch string) bool { return p.only == nil || slices.Contains(p.only, arch) }

// target is how to compile for an architecture of Debian.
type target struct {
	env []string
	// Go's own linker makes position independent programs of it; else gcc must,
	// and the C library is linked.
	internal bool
	// gcc and strip as their packages call them where it is not the machine's.
	compiler, strip string
}

var targets = map[string]target{
	"amd64": {env: []string{"GOARCH=amd64", "GOAMD64=v1"}, internal: true, compiler: "x86_64-linux-gnu-gcc", strip: "x86_64-linux-gnu-strip"},
	// Debian's armhf has a floating point unit. Raspbian's is for older boards
	// too, which Azure IoT Edge does not run on.
	"armhf": {env: []string{"GOARCH=arm", "GOARM=7"}, compiler: "arm-linux-gnueabihf-gcc", strip: "arm-linux-gnueabihf-strip"},
	"arm64": {env: []string{"GOARCH=arm64", "GOARM64=v8.0"}, internal: true, compiler: "aarch64-linux-gnu-gcc", strip: "aarch64-linux-gnu-strip"},
}

func architectures() []string { return slices.Sorted(maps.Keys(targets)) }

// compile makes the programs for an architecture.
func compile(arch, dir string, r release) error {
	t := targets[arch]
	compiler, err := t.crossCompiler(arch)
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	for _, p := range programs {
		if !p.builtFor(arch) {
			continue
		}
		cmd := exec.Command("go", p.arguments(t, filepath.Join(dir, p.name), r)...)
		cmd.Dir = p.module
		// Whatever the caller's environment says of Go must not change the result.
		cmd.Env = append(os.Environ(), "GOOS=linux", "GOFLAGS=", "GOEXPERIMENT=", "CC="+compiler, "CGO_ENABLED=0",
			"CGO_CFLAGS="+cflags, "CGO_CPPFLAGS=", "CGO_LDFLAGS=")
		cmd.Env = append(cmd.Env, t.env...)
		if p.external(t) {
			cmd.Env = append(cmd.Env, "CGO_ENABLED=1")
		}
		if _, err := outputOf(cmd); err != nil {
			return fmt.Errorf("cannot compile %s for %s: %w", p.name, arch, err)
		}
		if !p.external(t) {
			continue
		}
		// gcc notes its version in each program.
		if _, err := output(t.strip, "--remove-section=.comment", "--remove-section=.note", filepath.Join(dir, p.name)); err != nil {
			return fmt.Errorf("cannot strip %s for %s: %w", p.name, arch, err)
		}
	}
	return nil
}

// external tells whether gcc links the program.
func (p program) external(t target) bool { return p.cgo || !t.internal }

func (p program) arguments(t target, output string, r release) []string {
	// The addresses of functions and data are drawn at each start, and what the
	// loader fills in is read-only before the program runs.
	flags := "-s -w -buildid= -bindnow"
	if p.external(t) {
		// gcc would put a hash over the temporary names of object files into it.
		flags = "-s -w -buildid= -linkmode=external -extldflags '-Wl,-z,relro,-z,now,--build-id=none'"
	}
	args := []string{"build", "-trimpath", "-buildvcs=false", "-buildmode=pie", "-o", output}
	// When the sources were changed; a program without that variable is as it was.
	flags += " -X " + ours + "/pkg/clock.built=" + r.epoch()
	if p.small {
		// These link the most, and the TPM takes nearly all of their time: functions
		// are called and not copied, except in cryptography.
		args = append(args, "-gcflags=github.com/...=-l", "-gcflags=net/...=-l", "-gcflags=vendor/...=-l")
	}
	return append(args, "-tags", tags, "-ldflags", flags, p.path)
}

// crossCompiler is the command that compiles C for an architecture, with the
// libraries of that architecture where it is not the machine's.
func (t target) crossCompiler(arch string) (string, error) {
	native, err := output("dpkg", "--print-architecture")
	if err != nil {
		return "", err
	}
	if strings.TrimSpace(string(native)) == arch {
		return "gcc", nil
	}
	if _, err := exec.LookPath(t.compiler); err != nil {
		return "", fmt.Errorf("cannot compile for %s: %s is not there: scripts/deps package installs it", arch, t.compiler)
	}
	cmd := exec.Command("scripts/sysroot", arch)
	cmd.Stderr = os.Stderr
	root, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("cannot compile for %s: scripts/sysroot: %w", arch, err)
	}
	dir := strings.TrimSpace(string(root))
	if dir == "" {
		return "", errors.New("scripts/sysroot printed no folder")
	}
	return t.compiler + " --sysroot=" + dir, nil
}
