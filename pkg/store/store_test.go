package store

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
)

func dir(t *testing.T) *Dir {
	t.Helper()
	d := Open(filepath.Join(t.TempDir(), "a/b"), 0o750)
	t.Cleanup(func() { d.Close() })
	return d
}

// Looking makes nothing; the first Write makes the directory.
func TestLazy(t *testing.T) {
	d := dir(t)
	if _, err := d.Read("x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading: %v", err)
	}
	if d.Has("x") || d.Same("x", nil, 0o600) {
		t.Error("there is something in a directory that is not there")
	}
	if err := d.Remove("x"); err != nil {
		t.Errorf("removing: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(d.Name())); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a look has made the directory: %v", err)
	}
	if err := d.Write("x", []byte("1"), 0o640); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(d.Name())
	if err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("the directory: %v, %v", info.Mode(), err)
	}
}

func TestWrite(t *testing.T) {
	d := dir(t)
	// The mode is exactly the one given, whatever the umask; not parallel.
	defer syscall.Umask(syscall.Umask(0o077))
	for _, data := range []string{"one", "another one", ""} {
		if err := d.Write("x", []byte(data), 0o664); err != nil {
			t.Fatal(err)
		}
		got, err := d.Read("x")
		if err != nil || string(got) != data {
			t.Errorf("%q, %v; want %q", got, err, data)
		}
		if !d.Same("x", []byte(data), 0o664) || d.Same("x", []byte(data), 0o600) || d.Same("x", []byte("else"), 0o664) {
			t.Error("Same does not tell")
		}
	}
	if entries, err := os.ReadDir(d.Name()); err != nil || len(entries) != 1 {
		t.Errorf("left over: %v, %v", entries, err)
	}
}

// A write that fails leaves the old file, and nothing beside it.
func TestWriteFails(t *testing.T) {
	d := dir(t)
	if err := d.Write("x", []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("missing/x", nil, 0o600); err == nil {
		t.Error("a file was written into a directory that is not there")
	}
	if got, err := d.Read("x"); err != nil || string(got) != "old" {
		t.Errorf("%q, %v", got, err)
	}
	if entries, err := os.ReadDir(d.Name()); err != nil || len(entries) != 1 {
		t.Errorf("left over: %v, %v", entries, err)
	}
}

// What a write or the making of a directory has left that was cut is gone after
// the next; what only looks like it stays.
func TestSweep(t *testing.T) {
	d := dir(t)
	fresh := filepath.Join(filepath.Dir(d.Name()), ".b.new")
	if err := os.MkdirAll(fresh, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Create(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(fresh); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory that was begun is there still: %v", err)
	}
	stay := []string{".x", ".x12a", ".xy12", "x12", ".y12"}
	for _, name := range append([]string{".x12", ".x8674665223082153551"}, stay...) {
		if err := os.WriteFile(d.Path(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want ...string) {
		t.Helper()
		var have []string
		entries, err := os.ReadDir(d.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			have = append(have, e.Name())
		}
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Errorf("%q are there, want %q", have, want)
		}
	}
	if err := d.Write("x", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check(append(stay, "x")...)
	// Also where the file itself was never there.
	if err := d.Remove("y"); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove("x"); err != nil {
		t.Fatal(err)
	}
	check(stay[:len(stay)-1]...)
}

// A link in the place of a directory that is being made leads nowhere.
func TestTrapBesideDirectory(t *testing.T) {
	d := dir(t)
	outside := t.TempDir()
	if err := os.Chmod(outside, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(d.Name()), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(filepath.Dir(d.Name()), ".b.new")); err != nil {
		t.Fatal(err)
	}
	if err := d.Create(); err == nil {
		t.Error("a link was taken for a directory")
	}
	if info, err := os.Stat(outside); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// Links and directories in a file's place are a trap, and lead nowhere.
func TestTraps(t *testing.T) {
	d := dir(t)
	if err := d.Create(); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"absolute": outside, "relative": "../../outside"} {
		if err := os.Symlink(target, d.Path(name)); err != nil {
			t.Fatal(err)
		}
		if err := d.Write(name, []byte("x"), 0o600); err == nil {
			t.Errorf("%s: a link was written over", name)
		}
		if data, err := d.Read(name); err == nil {
			t.Errorf("%s: %q was read through a link", name, data)
		}
		if _, err := d.TryLock(name); err == nil {
			t.Errorf("%s: a link was locked", name)
		}
	}
	if err := os.Mkdir(d.Path("dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("dir", nil, 0o600); err == nil {
		t.Error("a directory was written over")
	}
	if _, err := d.Read("dir"); err == nil {
		t.Error("a directory was read")
	}
	if err := d.Write("../escaped", nil, 0o600); err == nil {
		t.Error("a file was written outside")
	}
	if data, err := os.ReadFile(outside); err != nil || string(data) != "untouched" {
		t.Errorf("%q, %v", data, err)
	}
	if err := d.Write("large", bytes.Repeat([]byte("x"), maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read("large"); err == nil {
		t.Error("a file of any size was read")
	}
}

func TestLock(t *testing.T) {
	d := dir(t)
	lock, err := d.TryLock("lock")
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.TryLock("lock")
	locked, ok := errors.AsType[*LockedError](err)
	if !ok || locked.Path != d.Path("lock") || locked.Holder != os.Getpid() {
		t.Errorf("locked twice: %v, %+v", err, locked)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	again, err := d.TryLock("lock")
	if err != nil {
		t.Fatal(err)
	}
	again.Unlock()
}

// Root leaves nothing in another user's directory that this user cannot replace.
func TestInheritedOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	parent := t.TempDir()
	if err := os.Chown(parent, 12345, 23456); err != nil {
		t.Fatal(err)
	}
	d := Open(filepath.Join(parent, "sub"), fs.ModeSetgid|0o770)
	t.Cleanup(func() { d.Close() })
	if err := d.Write("file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("given", nil, 0o600, OwnedBy(Owner{UID: 1, GID: 2})); err != nil {
		t.Fatal(err)
	}
	lock, err := d.TryLock("lock")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	for name, want := range map[string]Owner{
		"": {12345, 23456}, "file": {12345, 23456}, "lock": {12345, 23456}, "given": {1, 2},
	} {
		info, err := os.Stat(d.Path(name))
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		if have := (Owner{int(st.Uid), int(st.Gid)}); have != want {
			t.Errorf("%q belongs to %v, want %v", name, have, want)
		}
		if name == "" && info.Mode()&fs.ModeSetgid == 0 {
			t.Error("the directory has lost its setgid bit")
		}
	}
}

// What is set aside is whole and out of the way; the last file tells whether
// all of it was moved.
func TestSetAside(t *testing.T) {
	d := dir(t)
	if err := d.SetAside("x", "last"); err != nil {
		t.Fatalf("nothing to set aside: %v", err)
	}
	for _, name := range []string{"a", "last", "z"} {
		if err := d.Write(name, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(d.Path("sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	// Something else in the place of one file stops it: the last stays.
	if err := os.MkdirAll(d.Path("foreign-x/z/full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.SetAside("x", "last"); err == nil || !d.Has("last") || !d.Has("z") {
		t.Fatalf("%v; the last file must stay as long as another does", err)
	}
	if err := os.RemoveAll(d.Path("foreign-x/z")); err != nil {
		t.Fatal(err)
	}
	if err := d.SetAside("x", "last"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "last", "z"} {
		got, err := d.Read("foreign-x/" + name)
		if err != nil || string(got) != name || d.Has(name) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if !d.Has("foreign-x/sub") || d.Has("sub") {
		t.Error("a directory was left")
	}
	if err := d.SetAside("y", "last"); err != nil || d.Has("foreign-y") {
		t.Errorf("nothing was left to set aside: %v", err)
	}
}

// Programs that start at one moment make the directory at one moment: they all
// come to have the same one, or they would hold the same lock side by side.
func TestCreateTogether(t *testing.T) {
	for range 50 {
		name := filepath.Join(t.TempDir(), "a/b")
		const programs = 4
		var locks [programs]*Lock
		var errs [programs]error
		var together, all sync.WaitGroup
		together.Add(programs)
		for i := range programs {
			d := Open(name, 0o755)
			t.Cleanup(func() { d.Close() })
			all.Go(func() {
				together.Done()
				together.Wait()
				locks[i], errs[i] = d.TryLock("lock")
			})
		}
		all.Wait()
		held := 0
		for i, err := range errs {
			if locks[i] != nil {
				held++
				locks[i].Unlock()
			} else if _, ok := errors.AsType[*LockedError](err); !ok {
				t.Error(err)
			}
		}
		if held != 1 {
			t.Fatalf("%d programs hold the lock: %v", held, errs)
		}
		if left, err := os.ReadDir(filepath.Dir(name)); err != nil || len(left) != 1 {
			t.Errorf("left over: %v, %v", left, err)
		}
	}
}

// A link in the directory's place goes, and what it points to stays; the
// directory can be written to again.
func TestRemoveAll(t *testing.T) {
	top := t.TempDir()
	d := Open(filepath.Join(top, "d"), 0o700)
	defer d.Close()
	for range 2 {
		if err := d.Write("a", []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(d.Path("deeper"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := d.RemoveAll(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(d.Name()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it is there: %v", err)
		}
	}
	if err := d.RemoveAll(); err != nil {
		t.Errorf("nothing to remove: %v", err)
	}
	outside := filepath.Join(top, "outside")
	if err := errors.Join(os.Mkdir(outside, 0o755), os.WriteFile(filepath.Join(outside, "f"), nil, 0o600), os.Symlink(outside, d.Name())); err != nil {
		t.Fatal(err)
	}
	if err := d.RemoveAll(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(outside, "f")); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
	if err := Open(filepath.Join(top, "no/such/parent"), 0o755).RemoveAll(); err != nil {
		t.Errorf("no parent: %v", err)
	}
}

// What was in a file that is wiped is nowhere, not even by another name of the
// file.
func TestWipe(t *testing.T) {
	name := t.TempDir()
	d := Open(name, 0o700)
	defer d.Close()
	if err := d.Wipe("secret"); err != nil {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := d.Write("secret", []byte("a password"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(d.Path("secret"), d.Path("link")); err != nil {
		t.Fatal(err)
	}
	if err := d.Wipe("secret"); err != nil {
		t.Fatal(err)
	}
	if d.Has("secret") {
		t.Error("it is still there")
	}
	if left, err := d.Read("link"); err != nil || !bytes.Equal(left, make([]byte, len("a password"))) {
		t.Errorf("left is %q, %v", left, err)
	}
	if err := os.Symlink("link", d.Path("secret")); err != nil {
		t.Fatal(err)
	}
	if err := d.Wipe("secret"); err == nil || !d.Has("secret") {
		t.Errorf("a link was followed or removed: %v", err)
	}
}
