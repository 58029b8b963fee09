package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/plain"
)

// refused demands that something laid out for the program is not used, and that
// nobody tries it again.
func refused(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil || step.ClassOf(err) != step.Refused || step.HintOf(err) == "" {
		t.Errorf("%s: %v (class %d, hint %q)", what, err, step.ClassOf(err), step.HintOf(err))
	}
}

// Another name of somebody's file gets its mode and its owner from nobody.
func TestHardLink(t *testing.T) {
	d := dir(t)
	if err := d.Write("own", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(outside, d.Path("linked")); err != nil {
		t.Skipf("the tests' folders are on more than one file system: %v", err)
	}
	refused(t, "the mode of a hard link", d.Chmod("linked", 0o666))
	if err := d.Write("linked", []byte("new"), 0o644); err != nil {
		t.Errorf("a new file in the place of a hard link: %v", err)
	}
	info, err := os.Stat(outside)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the other file has become %v, %v", info.Mode(), err)
	}
	if data, err := os.ReadFile(outside); err != nil || string(data) != "untouched" {
		t.Errorf("the other file has become %q, %v", data, err)
	}
	if err := d.Chmod("own", 0o660); err != nil || !d.Same("own", []byte("x"), 0o660) {
		t.Errorf("a file of one name: %v", err)
	}
	if err := os.Symlink(outside, d.Path("soft")); err != nil {
		t.Fatal(err)
	}
	if err := d.Chmod("soft", 0o666); err == nil {
		t.Error("the mode of what a link leads to was set")
	}
	refused(t, "reading a link", second(d.Read("soft")))
	refused(t, "writing over a link", d.Write("soft", nil, 0o600))
	refused(t, "a link where a file is wanted", d.Plain("soft"))
}

func second[T any](_ T, err error) error { return err }

// Root gives no file away that another user has linked into its directory.
func TestLockIsNotGivenAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	parent := t.TempDir()
	must(t, os.Chown(parent, 12345, 23456))
	d := Open(filepath.Join(parent, "sub"), 0o755)
	t.Cleanup(func() { d.Close() })
	must(t, d.Create())
	outside := filepath.Join(parent, "outside")
	must(t, os.WriteFile(outside, nil, 0o600))
	must(t, os.Link(outside, d.Path("lock")))
	refused(t, "a lock with two names", second(d.TryLock("lock")))
	info, err := os.Stat(outside)
	must(t, err)
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 {
		t.Errorf("the other file was given to user %d", uid)
	}
	// One that is its owner's already has two names where somebody made a backup by links.
	must(t, os.Chown(outside, 12345, 23456))
	lock, err := d.TryLock("lock")
	must(t, err)
	must(t, lock.Unlock())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A directory in whose place is somebody else's link is not entered.
func TestLinkedDirectory(t *testing.T) {
	parent, elsewhere := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(elsewhere, "x"), []byte("1"), 0o600))
	link := filepath.Join(parent, "link")
	must(t, os.Symlink(elsewhere, link))
	own := Open(link, 0o755)
	t.Cleanup(func() { own.Close() })
	if data, err := own.Read("x"); err != nil || string(data) != "1" {
		t.Errorf("through a link of one's own: %q, %v", data, err)
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can make a link of somebody else")
	}
	must(t, os.Lchown(link, 12345, 23456))
	other := Open(link, 0o755)
	refused(t, "reading through somebody else's link", second(other.Read("x")))
	refused(t, "writing through it", other.Write("y", nil, 0o600))
	refused(t, "locking through it", second(other.TryLock("lock")))
	refused(t, "setting aside through it", other.SetAside("z", ""))
	if entries, err := os.ReadDir(elsewhere); err != nil || len(entries) != 1 || entries[0].Name() != "x" {
		t.Errorf("the other directory has become %v, %v", entries, err)
	}
}

// What is set aside goes into a directory, not to where somebody's link leads.
func TestSetAsideIntoALink(t *testing.T) {
	d := dir(t)
	must(t, d.Write("a", []byte("1"), 0o600))
	elsewhere := t.TempDir()
	must(t, os.Symlink(elsewhere, d.Path(Aside("x"))))
	refused(t, "setting aside into a link", d.SetAside("x", ""))
	if !d.Has("a") {
		t.Error("the file is gone")
	}
}

// Room tells before anything is made, and leaves nothing.
func TestRoom(t *testing.T) {
	d := dir(t)
	must(t, d.Room(100<<10))
	// A run of root was cut in the middle of it.
	must(t, os.WriteFile(d.Path(".room"), nil, 0))
	plain.User(t)
	must(t, d.Room(100<<10))
	if entries, err := os.ReadDir(d.Name()); err != nil || len(entries) != 0 {
		t.Errorf("left over: %v, %v", entries, err)
	}
	must(t, os.Chmod(d.Name(), 0o500))
	if err := d.Room(1); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), d.Name()) {
		t.Errorf("a directory that may not be written: %v", err)
	}
	must(t, os.Chmod(d.Name(), 0o700))
}
