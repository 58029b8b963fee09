package cmd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
)

// condition is what scripts may ask about this machine: [mount], whether whoever
// runs the tests may mount something that nobody else sees; [synchronised], whether
// its clock is, by which dates alone may be held against a certificate.
func condition(name string) (bool, error) {
	switch name {
	case "mount":
		return exec.Command("unshare", append(namespace(), "mount", "-t", "tmpfs", "tmpfs", "/mnt")...).Run() == nil, nil
	case "synchronised":
		return clock.Read().Verified, nil
	}
	return false, fmt.Errorf("there is no condition %q", name)
}

// namespace are the arguments of unshare(1) for mounts of one's own.
func namespace() []string {
	if os.Geteuid() == 0 {
		return []string{"--mount"}
	}
	return []string{"--mount", "--map-root-user"}
}

// disks are how a disk may be: what makes it so, below "$STATE".
var disks = map[string]string{
	"full":      `! cat /dev/zero >"$STATE/ballast" 2>/dev/null`,
	"read-only": `mount -o remount,bind,ro "$STATE"`,
}

// disk full|read-only puts the state of the device onto a disk of 1 MiB that is
// full, or can only be read, for each program that is run from here on: what is
// there can be read, and what a program writes all the same is lost. Without an
// argument the disk is as it was.
func cmdDisk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 || len(args) == 1 && disks[args[0]] == "" {
		ts.Fatalf("usage: disk [full|read-only]")
	}
	dir := ts.MkAbs("disk")
	ts.Check(os.RemoveAll(dir))
	if len(args) == 0 {
		return
	}
	// run starts what is first in PATH.
	if path := ts.Getenv("PATH"); !strings.HasPrefix(path, dir) {
		ts.Setenv("PATH", dir+string(os.PathListSeparator)+path)
	}
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(os.MkdirAll(ts.Getenv("STATE"), 0o755))
	for _, program := range []string{"idevid", "ldevid", "edgecfg"} {
		name := "tpm2cloud-" + program
		script := fmt.Sprintf("#!/bin/sh\nexec unshare %s %s/disk.sh %s \"$@\"\n", strings.Join(namespace(), " "), dir, filepath.Join(binaries, name))
		ts.Check(os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755))
	}
	ts.Check(os.WriteFile(filepath.Join(dir, "disk.sh"), []byte(`#!/bin/sh
set -e
copy=$(mktemp -d)
cp -a "$STATE/." "$copy"
mount -t tmpfs -o size=1m,mode=0755 tmpfs "$STATE"
cp -a "$copy/." "$STATE"
rm -r "$copy"
`+disks[args[0]]+`
exec "$@"
`), 0o755))
}
