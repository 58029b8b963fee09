// Package store keeps files below one directory.
//
// A file is either the old one or the new one, whole: it is written beside its
// place, synced, renamed over it, and the directory is synced. What a write that
// was cut has left beside it, the next write or removal of that file removes; so a
// file has one writer at a time, who holds the run lock. Nothing outside
// the directory is reached, whatever symbolic links somebody left there: all
// access goes through one [os.Root]. The programs run as root, too, in directories
// where somebody else may write, so what stands in a file's place must be a file:
// links are not followed. A link in the place of the directory itself is, if it is
// root's, or of the user who runs the program.
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
	"golang.org/x/sys/unix"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
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
		return fail(err, "open the directory %s", d.name)
	}
	if err := d.believe(root); err != nil {
		root.Close()
		return err
	}
	d.root = root
	return nil
}

// believe refuses a directory that somebody else's link has led to.
func (d *Dir) believe(root *os.Root) error {
	there, err := os.Lstat(d.name)
	if err != nil {
		return fail(err, "open the directory %s", d.name)
	}
	if there.Mode().Type() == fs.ModeSymlink {
		if uid := there.Sys().(*syscall.Stat_t).Uid; uid != 0 && int(uid) != os.Geteuid() {
			return trap("open the directory %s: it is a link of the user %d", d.name, uid)
		}
		return nil
	}
	// What is looked at now is what was opened, and no link has been taken away.
	if opened, err := root.Stat("."); err != nil || !os.SameFile(there, opened) {
		return trap("open the directory %s: it was exchanged meanwhile", d.name)
	}
	return nil
}

// trap is what somebody may have laid, so that a program does to another file
// what it means to do to its own.
func trap(format string, args ...any) error {
	return step.As(step.Refused, "find out who put it there, and remove it", fmt.Errorf("cannot "+format, args...))
}

// fail wraps an error of the disk: what could not be done, and what helps.
func fail(err error, format string, args ...any) error {
	wrapped := fmt.Errorf("cannot "+format+": %w", append(args, err)...)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return step.As(step.Temporary, "make room on the disk: df, df -i", wrapped)
	case errors.Is(err, syscall.EROFS):
		return step.As(step.Temporary, "the disk can only be read; the kernel makes it so after an error, see dmesg", wrapped)
	}
	return wrapped
}

func (d *Dir) create() error {
	if err := os.MkdirAll(filepath.Dir(d.name), 0o755); err != nil {
		return fail(err, "create %s", filepath.Dir(d.name))
	}
	// Under another name until its mode is right: Mkdir takes no setgid bit, the
	// umask takes bits away, and a power cut may come in between. Always the same
	// name, so that a run that was cut leaves one directory at most, which the next
	// one takes.
	fresh := filepath.Join(filepath.Dir(d.name), "."+filepath.Base(d.name)+".new")
	if err := os.Mkdir(fresh, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fail(err, "create %s", d.name)
	}
	if err := d.place(fresh); err != nil {
		// Another program of ours may have been quicker.
		if info, serr := os.Lstat(d.name); serr != nil || !info.IsDir() {
			return err
		}
		_ = os.Remove(fresh)
	}
	return syncDir(filepath.Dir(d.name))
}

// syncDir makes the names in a directory last, and its own mode and owner.
func syncDir(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return fail(err, "sync %s", name)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fail(err, "sync %s", name)
	}
	return nil
}

// place gives a fresh directory its mode, its owner and its name.
func (d *Dir) place(fresh string) error {
	if info, err := os.Lstat(fresh); err != nil || !info.IsDir() {
		return fmt.Errorf("cannot create %s: %s is no directory of ours (%w)", d.name, fresh, err)
	}
	if err := os.Chmod(fresh, d.mode); err != nil {
		return fail(err, "set the mode of %s", d.name)
	}
	owner, err := inherited(os.Stat(filepath.Dir(d.name)))
	if err == nil && owner != nil {
		err = os.Lchown(fresh, owner.UID, owner.GID)
	}
	if err != nil {
		return fail(err, "give %s to the owner of %s", d.name, filepath.Dir(d.name))
	}
	// One that a run before the cut has left may be on the disk with its first mode,
	// and the sync of its parent would make only the name last.
	if err := syncDir(fresh); err != nil {
		return err
	}
	// Another program may have made it at this moment, and lock a file in it at the
	// next: what is there stays. (A plain rename replaces an empty directory.)
	err = unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, d.name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) { // a file system that cannot, like JFFS2
		err = os.Rename(fresh, d.name)
	}
	if err != nil {
		return fail(err, "create %s", d.name)
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
	info, err := d.root.Lstat(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", d.Path(file), err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, trap("read %s: it is no regular file of less than %d bytes", d.Path(file), maxFile)
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
	if err := d.Plain(file); err != nil {
		return err
	}
	if err := d.write(file, data, mode, o); err != nil {
		return fail(err, "write %s", d.Path(file))
	}
	return nil
}

// Plain says whether a file can be in its place: there is one already, or nothing.
func (d *Dir) Plain(file string) error {
	if err := d.open(false); err != nil {
		return err
	}
	if info, err := d.root.Lstat(file); err == nil && !info.Mode().IsRegular() {
		return trap("use %s: it is no regular file (%s)", d.Path(file), info.Mode())
	}
	return nil
}

// Room finds out whether so many bytes could be written, and leaves nothing: who
// asks has done nothing yet that could not be kept.
func (d *Dir) Room(bytes int) error {
	if err := d.open(true); err != nil {
		return err
	}
	const try = ".room"
	// It may be there, of a run that was cut here, and be of another user.
	if err := d.root.Remove(try); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err, "write into %s", d.name)
	}
	f, err := d.root.OpenFile(try, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		_, err = f.Write(make([]byte, bytes))
		err = errors.Join(err, f.Close(), d.root.Remove(try))
	}
	if err != nil {
		return fail(err, "write %d bytes into %s", bytes, d.name)
	}
	return nil
}

// Chmod sets the mode of a file that somebody else has made there.
func (d *Dir) Chmod(file string, mode fs.FileMode) error {
	if err := d.open(false); err != nil {
		return err
	}
	f, err := d.root.OpenFile(file, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fail(err, "set the mode of %s", d.Path(file))
	}
	defer f.Close()
	if err := d.single(f, file); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return fail(err, "set the mode of %s", d.Path(file))
	}
	return nil
}

// single refuses what is no file, or is known by another name as well, by which it
// may be of more worth to somebody.
func (d *Dir) single(f *os.File, file string) error {
	info, err := f.Stat()
	if err != nil {
		return fail(err, "look at %s", d.Path(file))
	}
	if n := info.Sys().(*syscall.Stat_t).Nlink; !info.Mode().IsRegular() || n > 1 {
		return trap("use %s: it is no regular file with one name (%s, %d names)", d.Path(file), info.Mode(), n)
	}
	return nil
}

func (d *Dir) write(file string, data []byte, mode fs.FileMode, o options) error {
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

// Left says whether a name is of what a write of a file has left beside it that was
// cut: a file of renameio's, whose name is a dot, the file's, and a number.
func Left(name, file string) bool {
	number, ours := strings.CutPrefix(name, "."+file)
	return ours && number != "" && strings.Trim(number, "0123456789") == ""
}

// sweep removes what a write of this file has left that was cut.
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
		if !Left(name, path.Base(file)) {
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
	err := d.sweep(file)
	if err == nil {
		err = d.root.Remove(file)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot remove %s: %w", d.Path(file), err)
	}
	return d.sync(path.Dir(file))
}

// RemoveAll removes the directory with all that is in it; a link in its place is
// removed, and not followed. A later Write makes it anew.
func (d *Dir) RemoveAll() error {
	if err := d.Close(); err != nil {
		return fmt.Errorf("cannot close %s: %w", d.name, err)
	}
	d.root = nil
	if err := os.RemoveAll(d.name); err != nil {
		return fmt.Errorf("cannot remove %s: %w", d.name, err)
	}
	if err := syncDir(filepath.Dir(d.name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Wipe overwrites a file with zeros and removes it; one that is not there is
// fine. That is the best that a program can do: what flash memory, a journal or
// a snapshot of the file system have kept of it, they keep.
func (d *Dir) Wipe(file string) error {
	switch err := d.open(false); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	if err := d.wipe(file); err != nil {
		return fmt.Errorf("cannot wipe %s: %w", d.Path(file), err)
	}
	return d.Remove(file)
}

func (d *Dir) wipe(file string) error {
	info, err := d.root.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("there is a %s in its place", info.Mode().Type())
	}
	f, err := d.root.OpenFile(file, os.O_WRONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return err
	}
	if info.Size() > maxFile {
		return fmt.Errorf("it has more than %d bytes", maxFile)
	}
	if _, err := f.Write(make([]byte, info.Size())); err != nil {
		return err
	}
	return f.Sync()
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
		return fail(err, "set aside what is in %s", d.name)
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
	into = Aside(into)
	if err := d.root.Mkdir(into, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if info, err := d.root.Lstat(into); err != nil {
		return err
	} else if !info.IsDir() {
		return trap("use %s: it is no directory (%s)", d.Path(into), info.Mode())
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

// Aside is the directory that SetAside moves things into.
func Aside(into string) string { return asidePrefix + into }

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
