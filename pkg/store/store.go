// Package store keeps files below one directory.
//
// A file is either the old one or the new one, whole: it is written beside its
// place, synced, renamed over it, and the directory is synced. What a write that
// was cut has left beside it, the next write of that file removes; so a file has
// one writer at a time, who holds the run lock. Nothing outside
// the directory is reached, whatever symbolic links somebody left there: all
// access goes through one [os.Root].
//
// What root makes belongs to the owner of the directory that it is in: a program
// whose unit has a user of its own, and that somebody ran by hand as root, must
// not leave files behind that the unit cannot replace.
package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
)

// Dir is a directory of files. It need not exist before the first Write.
type Dir struct {
	name string
	mode fs.FileMode
	root *os.Root // nil until the directory was there
}

// Open names a directory and, where it is missing, the mode that the first
// Write makes it with (its parents get 0755). Reading a directory that is not
// there fails with fs.ErrNotExist and makes nothing.
func Open(name string, mode fs.FileMode) *Dir { return &Dir{name: name, mode: mode} }

// open opens the directory, and makes it where that is wanted.
func (d *Dir) open(create bool) error {
	if d.root != nil {
		return nil
	}
	root, err := os.OpenRoot(d.name)
	if errors.Is(err, fs.ErrNotExist) && create {
		if err := d.create(); err != nil {
			return err
		}
		root, err = os.OpenRoot(d.name)
	}
	if err != nil {
		return fmt.Errorf("cannot open the directory %s: %w", d.name, err)
	}
	d.root = root
	return nil
}

func (d *Dir) create() error {
	if err := os.MkdirAll(filepath.Dir(d.name), 0o755); err != nil {
		return fmt.Errorf("cannot create %s: %w", filepath.Dir(d.name), err)
	}
	// Under another name until its mode is right: Mkdir takes no setgid bit, the
	// umask takes bits away, and a power cut may come in between. Always the same
	// name, so that a run that was cut leaves one directory at most, which the next
	// one takes.
	fresh := filepath.Join(filepath.Dir(d.name), "."+filepath.Base(d.name)+".new")
	if err := os.Mkdir(fresh, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot create %s: %w", d.name, err)
	}
	if err := d.place(fresh); err != nil {
		// Another program of ours may have been quicker.
		if info, serr := os.Lstat(d.name); serr != nil || !info.IsDir() {
			return err
		}
		_ = os.Remove(fresh)
	}
	f, err := os.Open(filepath.Dir(d.name))
	if err != nil {
		return fmt.Errorf("cannot sync %s: %w", filepath.Dir(d.name), err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("cannot sync %s: %w", filepath.Dir(d.name), err)
	}
	return nil
}

// place gives a fresh directory its mode, its owner and its name.
func (d *Dir) place(fresh string) error {
	if info, err := os.Lstat(fresh); err != nil || !info.IsDir() {
		return fmt.Errorf("cannot create %s: %s is no directory of ours (%w)", d.name, fresh, err)
	}
	if err := os.Chmod(fresh, d.mode); err != nil {
		return fmt.Errorf("cannot set the mode of %s: %w", d.name, err)
	}
	owner, err := inherited(os.Stat(filepath.Dir(d.name)))
	if err == nil && owner != nil {
		err = os.Lchown(fresh, owner.UID, owner.GID)
	}
	if err != nil {
		return fmt.Errorf("cannot give %s to the owner of %s: %w", d.name, filepath.Dir(d.name), err)
	}
	if err := os.Rename(fresh, d.name); err != nil {
		return fmt.Errorf("cannot create %s: %w", d.name, err)
	}
	return nil
}

// Create makes the directory where it is missing.
func (d *Dir) Create() error { return d.open(true) }

// Close closes the directory.
func (d *Dir) Close() error {
	if d.root == nil {
		return nil
	}
	return d.root.Close()
}

// Name is the directory's path.
func (d *Dir) Name() string { return d.name }

// Path is the path of a file in the directory.
func (d *Dir) Path(file string) string { return filepath.Join(d.name, file) }

// maxFile bounds what is read: no file of ours comes near it.
const maxFile = 4 << 20

// Read reads a file; the error is fs.ErrNotExist where there is none.
func (d *Dir) Read(file string) ([]byte, error) {
	if err := d.open(false); err != nil {
		return nil, err
	}
	info, err := d.root.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", d.Path(file), err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("cannot read %s: it is no regular file of less than %d bytes", d.Path(file), maxFile)
	}
	data, err := d.root.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", d.Path(file), err)
	}
	return data, nil
}

// Has says whether a file is there.
func (d *Dir) Has(file string) bool {
	if d.open(false) != nil {
		return false
	}
	_, err := d.root.Lstat(file)
	return err == nil
}

// Owner is a file's owner; the zero value is root.
type Owner struct{ UID, GID int }

// inherited is the owner of a directory, for what root makes in it, and nil
// where that needs no change. Others cannot give anything away.
func inherited(directory fs.FileInfo, err error) (*Owner, error) {
	if err != nil || os.Geteuid() != 0 {
		return nil, err
	}
	st, ok := directory.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 {
		return nil, nil
	}
	return &Owner{int(st.Uid), int(st.Gid)}, nil
}

// Option changes how Write writes.
type Option func(*options)

type options struct{ owner *Owner }

// OwnedBy gives the file to a user and a group before it takes its place.
func OwnedBy(o Owner) Option { return func(opts *options) { opts.owner = &o } }

// Write puts a file in its place, whole, with exactly the mode given. It is
// there after a power cut as soon as Write has returned.
func (d *Dir) Write(file string, data []byte, mode fs.FileMode, opts ...Option) error {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	if err := d.open(true); err != nil {
		return err
	}
	if err := d.write(file, data, mode, o); err != nil {
		return fmt.Errorf("cannot write %s: %w", d.Path(file), err)
	}
	return nil
}

func (d *Dir) write(file string, data []byte, mode fs.FileMode, o options) error {
	// A directory of that name, or a link, would be a trap that somebody set.
	if info, err := d.root.Lstat(file); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("there is a %s in its place", info.Mode().Type())
	}
	if err := d.sweep(file); err != nil {
		return err
	}
	f, err := renameio.NewPendingFile(file, renameio.WithRoot(d.root), renameio.WithStaticPermissions(mode), renameio.WithTempDir(path.Dir(file)))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if o.owner == nil {
		if o.owner, err = inherited(d.root.Stat(path.Dir(file))); err != nil {
			return err
		}
	}
	if o.owner != nil {
		if err := f.Chown(o.owner.UID, o.owner.GID); err != nil {
			return err
		}
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return err
	}
	return d.sync(path.Dir(file))
}

// sweep removes what a write of this file has left beside it that was cut: a
// file of renameio's, whose name is a dot, the file's, and a number.
func (d *Dir) sweep(file string) error {
	dir, err := d.root.Open(path.Dir(file))
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		number, ours := strings.CutPrefix(name, "."+path.Base(file))
		if !ours || number == "" || strings.Trim(number, "0123456789") != "" {
			continue
		}
		if err := d.root.Remove(path.Join(path.Dir(file), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot remove what a write that was cut has left: %w", err)
		}
	}
	return nil
}

// Same says whether a file is there with this content and mode.
func (d *Dir) Same(file string, data []byte, mode fs.FileMode) bool {
	if d.open(false) != nil {
		return false
	}
	info, err := d.root.Lstat(file)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != mode.Perm() {
		return false
	}
	have, err := d.Read(file)
	return err == nil && bytes.Equal(have, data)
}

// Remove removes a file; one that is not there is fine.
func (d *Dir) Remove(file string) error {
	switch err := d.open(false); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	if err := d.root.Remove(file); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("cannot remove %s: %w", d.Path(file), err)
	}
	return d.sync(path.Dir(file))
}

// SetAside moves what is in the directory into a directory inside it, where
// nobody looks for it: the entries in the order of their names, and the last
// one at the very end, so that it tells whether all are moved. Directories of
// that kind stay where they are. A run that was cut goes on.
func (d *Dir) SetAside(into, last string) error {
	err := d.open(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.setAside(into, last); err != nil {
		return fmt.Errorf("cannot set aside what is in %s: %w", d.name, err)
	}
	return nil
}

func (d *Dir) setAside(into, last string) error {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), asidePrefix) && e.Name() != last {
			names = append(names, e.Name())
		}
	}
	if _, err := d.root.Lstat(last); err == nil && last != "" {
		names = append(names, last)
	}
	if len(names) == 0 {
		return nil
	}
	into = asidePrefix + into
	if err := d.root.Mkdir(into, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if owner, err := inherited(d.root.Stat(".")); err != nil {
		return err
	} else if owner != nil {
		if err := d.root.Lchown(into, owner.UID, owner.GID); err != nil {
			return err
		}
	}
	// The place is there for certain before anything is moved to it.
	if err := d.sync("."); err != nil {
		return err
	}
	for _, name := range names {
		if name == last {
			// The others are there for certain before it goes.
			if err := errors.Join(d.sync(into), d.sync(".")); err != nil {
				return err
			}
		}
		if err := d.root.Rename(name, path.Join(into, name)); err != nil {
			return err
		}
	}
	return errors.Join(d.sync(into), d.sync("."))
}

// asidePrefix begins the names of the directories that SetAside makes.
const asidePrefix = "foreign-"

// sync makes names in the directory survive a power cut: a rename that was not
// followed by a sync of the directory may be gone.
func (d *Dir) sync(dir string) error {
	f, err := d.root.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Lock is the run lock: programs that change the TPM or the files hold it, one
// at a time, for as long as they run.
type Lock struct{ f *os.File }

// ErrLocked: another program of ours is at work.
var ErrLocked = errors.New("another tpm2cloud program is running")

// TryLock takes the lock, or fails with ErrLocked at once. The kernel frees it
// when the process ends, however it ends.
func (d *Dir) TryLock(file string) (*Lock, error) {
	if err := d.open(true); err != nil {
		return nil, err
	}
	f, err := d.root.OpenFile(file, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock %s: %w", d.Path(file), err)
	}
	if owner, err := inherited(d.root.Stat(path.Dir(file))); err == nil && owner != nil {
		err = f.Chown(owner.UID, owner.GID)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("cannot give the lock %s to its owner: %w", d.Path(file), err)
		}
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("cannot lock %s: %w", d.Path(file), ErrLocked)
		}
		return nil, fmt.Errorf("cannot lock %s: %w", d.Path(file), err)
	}
	return &Lock{f}, nil
}

// Unlock frees the lock.
func (l *Lock) Unlock() error { return l.f.Close() }
