//go:build boot

package boottest

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// qemuDisk is a disk that debugfs reads and changes while no machine uses it.
type qemuDisk struct{ file string }

// root is the root file system, in the words of e2fsprogs.
func (d qemuDisk) root(t *testing.T) string {
	t.Helper()
	var table struct {
		PartitionTable struct {
			Partitions []struct {
				Start int64
				Name  string
			}
		}
	}
	must(t, json.Unmarshal([]byte(command(t, nil, "sfdisk", "--json", d.file)), &table))
	for _, p := range table.PartitionTable.Partitions {
		if p.Name == "root" {
			return fmt.Sprintf("%s?offset=%d", d.file, p.Start*512)
		}
	}
	t.Fatalf("%s has no partition root", d.file)
	return ""
}

// debugfs gives it commands. It goes on where one fails, so that the result must be looked at.
func (d qemuDisk) debugfs(t *testing.T, commands ...string) string {
	t.Helper()
	c := exec.Command("debugfs", "-w", "-f", "-", d.root(t))
	c.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
	return string(out)
}

// put writes files of the machine, which belong to root.
func (d qemuDisk) put(t *testing.T, files Files) {
	t.Helper()
	var commands []string
	source := scratch("put")
	for i, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		var above []string
		for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
			above = append(above, "mkdir "+dir)
		}
		slices.Reverse(above)
		commands = append(append(commands, above...), "rm "+name)
		if f.Link != "" {
			commands = append(commands, "symlink "+name+" "+f.Link)
			continue
		}
		file := filepath.Join(source, fmt.Sprint(i))
		must(t, os.WriteFile(file, []byte(f.Data), f.Mode))
		must(t, os.Chmod(file, f.Mode))
		commands = append(commands, "write "+file+" "+name)
	}
	said := d.debugfs(t, commands...)
	for name, f := range files {
		if f.Link == "" && command(t, nil, "debugfs", "-R", "cat "+name, d.root(t)) != f.Data {
			t.Fatalf("debugfs did not write %s:\n%s", name, said)
		}
	}
}

// copyOut copies files and folders that are there to the same places below a folder, with owners,
// modes and times.
func (d qemuDisk) copyOut(t *testing.T, to string, names ...string) {
	t.Helper()
	must(t, os.RemoveAll(to))
	for _, name := range names {
		parent := filepath.Join(to, path.Dir(name))
		must(t, os.MkdirAll(parent, 0o755))
		command(t, nil, "debugfs", "-R", "rdump "+name+" "+parent, d.root(t))
	}
}

// empty removes a folder with all below it.
func (d qemuDisk) empty(t *testing.T, folder string) {
	t.Helper()
	to := scratch("empty")
	d.copyOut(t, to, folder)
	var commands []string
	must(t, filepath.WalkDir(filepath.Join(to, folder), func(file string, entry os.DirEntry, err error) error {
		verb := "rm "
		if entry.IsDir() {
			verb = "rmdir "
		}
		commands = append(commands, verb+strings.TrimPrefix(file, to))
		return err
	}))
	slices.Reverse(commands) // what is in a folder first
	d.debugfs(t, commands...)
}

// check has e2fsck judge the file system.
func (d qemuDisk) check(t *testing.T) {
	t.Helper()
	command(t, nil, "e2fsck", "-f", "-n", d.root(t))
}
