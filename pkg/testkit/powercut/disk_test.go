package powercut

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each case does something to a disk that has the files old ("1") and dir/old
// ("2"), and says which files there are afterwards on each of the disks that a
// cut may leave.
func TestDisk(t *testing.T) {
	write := func(name, data string) func(*Disk) error {
		return func(d *Disk) error { return os.WriteFile(filepath.Join(d.root, name), []byte(data), 0o600) }
	}
	sync := func(name string) func(*Disk) error {
		return func(d *Disk) error { return d.Synced(filepath.Join(d.root, name)) }
	}
	rename := func(from, to string) func(*Disk) error {
		return func(d *Disk) error {
			return os.Rename(filepath.Join(d.root, from), filepath.Join(d.root, to))
		}
	}
	remove := func(name string) func(*Disk) error {
		return func(d *Disk) error { return os.Remove(filepath.Join(d.root, name)) }
	}
	mkdir := func(name string) func(*Disk) error {
		return func(d *Disk) error { return os.Mkdir(filepath.Join(d.root, name), 0o700) }
	}
	for _, c := range []struct {
		name                 string
		do                   []func(*Disk) error
		kept, strict, hollow string
	}{
		{"nothing", nil, "dir/ dir/old=2 old=1", "dir/ dir/old=2 old=1", "dir/ dir/old=2 old=1"},
		{"a write", []func(*Disk) error{write("new", "3")},
			"dir/ dir/old=2 new=3 old=1", "dir/ dir/old=2 old=1", "dir/ dir/old=2 new= old=1"},
		{"a write and its sync", []func(*Disk) error{write("new", "3"), sync("new")},
			"dir/ dir/old=2 new=3 old=1", "dir/ dir/old=2 old=1", "dir/ dir/old=2 new=3 old=1"},
		{"a write and the directory's sync", []func(*Disk) error{write("new", "3"), sync(".")},
			"dir/ dir/old=2 new=3 old=1", "dir/ dir/old=2 new= old=1", "dir/ dir/old=2 new= old=1"},
		{"a write, its sync, the directory's sync", []func(*Disk) error{write("new", "3"), sync("new"), sync(".")},
			"dir/ dir/old=2 new=3 old=1", "dir/ dir/old=2 new=3 old=1", "dir/ dir/old=2 new=3 old=1"},
		{"a file that is overwritten", []func(*Disk) error{write("old", "4")},
			"dir/ dir/old=2 old=4", "dir/ dir/old=2 old=1", "dir/ dir/old=2 old=1"},
		{"a file that is replaced, without a sync", []func(*Disk) error{write("new", "3"), rename("new", "old")},
			"dir/ dir/old=2 old=3", "dir/ dir/old=2 old=1", "dir/ dir/old=2 old="},
		{"a file that is replaced, without the directory's sync", []func(*Disk) error{write("new", "3"), sync("new"), rename("new", "old")},
			"dir/ dir/old=2 old=3", "dir/ dir/old=2 old=1", "dir/ dir/old=2 old=3"},
		{"a file that is replaced, without its own sync", []func(*Disk) error{write("new", "3"), rename("new", "old"), sync(".")},
			"dir/ dir/old=2 old=3", "dir/ dir/old=2 old=", "dir/ dir/old=2 old="},
		{"a file that is replaced as it should be", []func(*Disk) error{write("new", "3"), sync("new"), rename("new", "old"), sync(".")},
			"dir/ dir/old=2 old=3", "dir/ dir/old=2 old=3", "dir/ dir/old=2 old=3"},
		{"a removal", []func(*Disk) error{remove("old")}, "dir/ dir/old=2", "dir/ dir/old=2 old=1", "dir/ dir/old=2"},
		{"a removal and the directory's sync", []func(*Disk) error{remove("old"), sync(".")}, "dir/ dir/old=2", "dir/ dir/old=2", "dir/ dir/old=2"},
		{"a name that is used again", []func(*Disk) error{remove("old"), write("old", "5")},
			"dir/ dir/old=2 old=5", "dir/ dir/old=2 old=1", "dir/ dir/old=2 old="},
		{"a directory", []func(*Disk) error{mkdir("sub"), write("sub/x", "6"), sync("sub/x"), sync("sub")},
			"dir/ dir/old=2 old=1 sub/ sub/x=6", "dir/ dir/old=2 old=1", "dir/ dir/old=2 old=1 sub/ sub/x=6"},
		{"a directory whose names were not synced", []func(*Disk) error{mkdir("sub"), sync("."), write("sub/x", "6"), sync("sub/x")},
			"dir/ dir/old=2 old=1 sub/ sub/x=6", "dir/ dir/old=2 old=1 sub/", "dir/ dir/old=2 old=1 sub/ sub/x=6"},
		{"a move, and a sync of where it came from", []func(*Disk) error{rename("old", "dir/moved"), sync(".")},
			"dir/ dir/moved=1 dir/old=2", "dir/ dir/moved=1 dir/old=2", "dir/ dir/moved=1 dir/old=2"},
		{"a move, and a sync of where it went", []func(*Disk) error{rename("old", "dir/moved"), sync("dir")},
			"dir/ dir/moved=1 dir/old=2", "dir/ dir/moved=1 dir/old=2", "dir/ dir/moved=1 dir/old=2"},
		{"a move", []func(*Disk) error{rename("old", "dir/moved")},
			"dir/ dir/moved=1 dir/old=2", "dir/ dir/old=2 old=1", "dir/ dir/moved=1 dir/old=2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.Mkdir(filepath.Join(root, "dir"), 0o700); err != nil {
				t.Fatal(err)
			}
			for name, data := range map[string]string{"old": "1", "dir/old": "2"} {
				if err := os.WriteFile(filepath.Join(root, name), []byte(data), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			d, err := NewDisk(root)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			for _, do := range c.do {
				if err := do(d); err != nil {
					t.Fatal(err)
				}
			}
			kept, err := d.Kept()
			if err != nil {
				t.Fatal(err)
			}
			hollow, err := d.Hollow()
			if err != nil {
				t.Fatal(err)
			}
			for name, got := range map[string]Image{c.kept: kept, c.strict: d.Strict(), c.hollow: hollow} {
				if said(got) != name {
					t.Errorf("got %s, want %s", said(got), name)
				}
			}
		})
	}
}

func said(i Image) string {
	var list []string
	for _, name := range i.Names() {
		switch e := i[name]; {
		case name == ".":
		case e.Mode.IsDir():
			list = append(list, name+"/")
		default:
			list = append(list, name+"="+e.Data)
		}
	}
	return strings.Join(list, " ")
}

// An image that is written and taken again is the same, to the modes and times.
func TestImage(t *testing.T) {
	from := filepath.Join(t.TempDir(), "from")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(from, "closed/in"), 0o755),
		os.WriteFile(filepath.Join(from, "closed/in/file"), []byte("x"), 0o640),
		os.Symlink("in/file", filepath.Join(from, "closed/link")),
		os.Mkdir(filepath.Join(from, "left-out"), 0o755),
		os.WriteFile(filepath.Join(from, "left-out/file"), nil, 0o600),
		os.Chmod(filepath.Join(from, "closed"), 0o750|fs.ModeSetgid),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	image, err := Read(from, "left-out")
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "to")
	for range 2 { // the second time over what is there
		if err := image.Write(to); err != nil {
			t.Fatal(err)
		}
		again, err := Read(to)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range image.Diff(again) {
			if !strings.HasSuffix(line, " was written anew") { // its inode is another one
				t.Error(line)
			}
		}
		for name, e := range image {
			if e.Mode.Type() != fs.ModeSymlink && !e.Time.Equal(again[name].Time) {
				t.Errorf("%s has the time %v, want %v", name, again[name].Time, e.Time)
			}
		}
		if again.Digest() != image.Digest() || again.Shape() != image.Shape() {
			t.Error("its digest or its shape is another one")
		}
		if err := os.WriteFile(filepath.Join(to, "stray"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(image.Diff(Image{})); !strings.Contains(got, "gone: closed/in/file") {
		t.Errorf("%s", got)
	}
}
