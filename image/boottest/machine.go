//go:build boot

package boottest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// top is the checkout; tests run in the folder of their package.
var top = func() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}()

// scratch makes a folder that no other test uses. It is in memory, with a short
// path, because sockets are in such folders and their paths have 107 bytes.
func scratch(name string) string {
	dir, err := os.MkdirTemp("/run", name+"-")
	if err != nil {
		panic(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		panic(err)
	}
	return dir
}

// program is the path of a program of this machine.
func program(name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		panic(fmt.Sprintf("%v; run scripts/deps base boot", err))
	}
	return path
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return string(data)
}

// command runs a program of this machine and gives its output.
func command(t testing.TB, env []string, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), env...)
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", c, err, out.String(), said.String())
	}
	return out.String()
}

// await looks until something is so.
func await(t testing.TB, limit time.Duration, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// put writes files below the root of a machine that is off.
func put(t testing.TB, root string, files Files) {
	t.Helper()
	for path, f := range files {
		path = filepath.Join(root, path)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		if f.Link != "" {
			os.Remove(path)
			must(t, os.Symlink(f.Link, path))
			continue
		}
		must(t, os.WriteFile(path, []byte(f.Data), f.Mode))
		must(t, os.Chmod(path, f.Mode))
	}
}

// packages are the .debs of this project for an architecture, those of the lab
// among them.
func packages(t testing.TB, arch string) (files []string) {
	t.Helper()
	dir := filepath.Join(top, "build/packages")
	for _, name := range []string{"tpm2cloud-common", "tpm2cloud-ek-roots", "tpm2cloud-idevid", "tpm2cloud-ldevid", "tpm2cloud-edgecfg", "tpm2cloud-cli", "tpm2cloud", "tpm2cloud-lab"} {
		var found []string
		for _, arch := range []string{arch, "all"} {
			list, err := filepath.Glob(filepath.Join(dir, name+"_*_"+arch+".deb"))
			must(t, err)
			found = append(found, list...)
		}
		if len(found) != 1 {
			t.Fatalf("there are %d packages %s for %s in build/packages, and one is needed: run make packages", len(found), name, arch)
		}
		files = append(files, found[0])
	}
	return files
}

func lines(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
}
