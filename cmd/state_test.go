package cmd

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
)

// A sample is a device as one version left it: its files with their modes, and
// the permanent state of its software TPM. Every later version must go on with
// it: an update that loses an identity can't be taken back. There is one for
// each version in ../testdata/state, made by
//
//	STATE_SAMPLE=$PWD/testdata/state/VERSION go test -tags TAGS ./cmd -run TestScripts/state
//
// before that version is released. What is secret in it is so of a TPM that
// lies beside it.
const samples = "../testdata/state"

// The parts of a sample.
const (
	sampleRoot  = "root"
	sampleModes = "modes"
	sampleTPM   = "tpm2-00.permall"
)

// TestStateSamples goes on with the device of every version.
func TestStateSamples(t *testing.T) {
	for _, version := range sampleVersions(t) {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			dir, err := filepath.Abs(filepath.Join(samples, version))
			if err != nil {
				t.Fatal(err)
			}
			testscript.Run(t, testscript.Params{
				Files: []string{filepath.Join(samples, "read.txt")},
				Setup: func(env *testscript.Env) error {
					env.Setenv("SAMPLE", dir)
					return setup(env)
				},
				Cmds:                commands,
				RequireExplicitExec: true,
			})
		})
	}
}

func sampleVersions(t *testing.T) (versions []string) {
	t.Helper()
	entries, err := os.ReadDir(samples)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			versions = append(versions, entry.Name())
		}
	}
	if len(versions) == 0 {
		t.Fatalf("no samples in %s", samples)
	}
	return versions
}

// TestSampleOfEachVersion: no version leaves the house without a sample, which
// nobody can make afterwards.
func TestSampleOfEachVersion(t *testing.T) {
	changelog, err := os.ReadFile("../debian/changelog")
	if err != nil {
		t.Fatal(err)
	}
	entries := regexp.MustCompile(`(?m)^tpm2cloud \(([^)]+)\)`).FindAllSubmatch(changelog, -1)
	if len(entries) == 0 {
		t.Fatal("no version in debian/changelog")
	}
	for _, entry := range entries {
		version := string(entry[1])
		if _, err := os.Stat(filepath.Join(samples, version, sampleTPM)); err != nil {
			t.Errorf("version %s in debian/changelog has no sample of its state: %v; see state_test.go", version, err)
		}
	}
}

// keep DIR writes the device as a sample.
func cmdKeep(ts *testscript.TestScript, neg bool, args []string) {
	w := theWorld(ts)
	dir := args[0]
	ts.Check(os.RemoveAll(dir))
	// As an administrator has it: the package's file, and what differs in another.
	dropIn := filepath.Join(w.root, "etc/tpm2cloud/tpm2cloud.toml.d/50-device.toml")
	ts.Check(os.Rename(filepath.Join(w.root, "etc/tpm2cloud/tpm2cloud.toml"), dropIn))
	ts.Check(copyFile("../debian/tpm2cloud.toml", filepath.Join(w.root, "etc/tpm2cloud/tpm2cloud.toml"), 0o644))

	var modes strings.Builder
	for _, tree := range []string{"etc", "var/lib/tpm2cloud"} {
		ts.Check(filepath.WalkDir(filepath.Join(w.root, tree), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name, err := filepath.Rel(w.root, path)
			if err != nil {
				return err
			}
			// The password is the laboratory's, which is not kept.
			if name == "etc/tpm2cloud/credentials" {
				return fs.SkipDir
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			to := filepath.Join(dir, sampleRoot, name)
			fmt.Fprintf(&modes, "%s %s\n", octal(info.Mode()), name)
			if d.IsDir() {
				return os.MkdirAll(to, 0o755)
			}
			return copyFile(path, to, 0o644)
		}))
	}
	ts.Check(os.WriteFile(filepath.Join(dir, sampleModes), []byte(modes.String()), 0o644))
	w.tpm.Cut()
	ts.Check(copyFile(filepath.Join(w.tpm.Dir, sampleTPM), filepath.Join(dir, sampleTPM), 0o644))
}

// sample DIR makes the device of a sample, and gives it power.
func cmdSample(ts *testscript.TestScript, neg bool, args []string) {
	w, dir := theWorld(ts), args[0]
	// An empty directory is nothing that git keeps; the list of modes has it.
	list, err := os.ReadFile(filepath.Join(dir, sampleModes))
	ts.Check(err)
	for line := range strings.Lines(string(list)) {
		var mode uint32
		var name string
		if _, err := fmt.Sscanf(line, "%o %s", &mode, &name); err != nil {
			ts.Fatalf("%s: %q: %v", sampleModes, line, err)
		}
		from, to := filepath.Join(dir, sampleRoot, name), filepath.Join(w.root, name)
		if info, err := os.Stat(from); err == nil && info.Mode().IsRegular() {
			ts.Check(copyFile(from, to, 0o600))
		} else {
			ts.Check(os.MkdirAll(to, 0o755))
		}
		// The number of a mode is not that of Go's fs.FileMode.
		goMode := fs.FileMode(mode & 0o777)
		if mode&0o2000 != 0 {
			goMode |= fs.ModeSetgid
		}
		ts.Check(os.Chmod(to, goMode))
	}
	w.tpm = tpmkit.Start(tb{ts: ts})
	w.tpm.Cut()
	ts.Check(copyFile(filepath.Join(dir, sampleTPM), filepath.Join(w.tpm.Dir, sampleTPM), 0o600))
	ts.Check(w.tpm.Power())
	w.reach(ts)
}

// octal is a mode as chmod takes it.
func octal(mode fs.FileMode) string {
	n := uint32(mode.Perm())
	if mode&fs.ModeSetgid != 0 {
		n |= 0o2000
	}
	return fmt.Sprintf("%04o", n)
}

func copyFile(from, to string, mode fs.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, mode)
}
