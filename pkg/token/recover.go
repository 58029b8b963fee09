package token

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// The library migrates a store of an older version thus: it copies the database to
// <db>.bak, changes the copy, renames the original to <db>.old, the copy to <db>, and
// unlinks the .old. Where a power cut leaves that, and what the library (1.9.0) then
// does at its next start:
//
//	db old version, .bak   unfinished copy; overwritten, but a damaged one fails the start
//	.old, .bak             makes an empty db, then refuses to start for ever
//	db new version, .old   refuses to start for ever
//
// tpm2_ptool leaves its .old even after a migration that went well, and refuses any
// .bak.
var leftoverSuffixes = []string{".old", ".bak"}

// leftovers is [ErrUnclean] if a migration left a file beside the database.
func leftovers(path string) error {
	for _, suffix := range leftoverSuffixes {
		there, err := exists(path + suffix)
		if err != nil {
			return err
		}
		if there {
			return fmt.Errorf("%w: %s is left of a migration", ErrUnclean, path+suffix)
		}
	}
	return nil
}

// Recover mends the store in dir after an interruption, before the library or keyd sees
// it; a clean or absent store it leaves alone. It rolls a cut transaction back, ends a
// cut migration, removes a store that the library had not finished making and that
// has no token, since the library can't, and a lock that nobody holds. It may be cut
// anywhere and run again.
//
// Of the database, the .old and the .bak, in this order, the first that has a token
// stays, or else the first that is whole: a migrated database is newer than its
// original, and a copy is the last resort. One that is damaged, met on the way there,
// is [ErrCorrupt], and nothing is touched.
func Recover(dir string) error {
	path, err := filepath.Abs(filepath.Join(dir, DBName))
	if err == nil {
		err = recoverStore(path)
	}
	if err != nil {
		return fmt.Errorf("cannot recover the token store: %w", err)
	}
	return nil
}

func recoverStore(path string) error {
	clean, err := isClean(path)
	if err != nil || clean {
		return err
	}
	unlock, err := lock(path)
	if err != nil {
		return err
	}
	defer unlock()

	files := []string{path}
	for _, suffix := range leftoverSuffixes {
		files = append(files, path+suffix)
	}
	keep, best := "", absent
	for _, f := range files {
		c, err := inspect(f)
		if err != nil {
			return fmt.Errorf("%s: %w", f, err) // it might be the one with tokens
		}
		if c > best {
			keep, best = f, c
		}
		if best == tokens {
			break // what comes after it is a copy
		}
	}
	if best <= unfinished {
		keep = ""
	}
	if keep != "" && keep != path {
		// A journal of the database that is replaced would be played into the new one.
		if err := remove(path + "-journal"); err != nil {
			return err
		}
		if err := os.Rename(keep, path); err != nil {
			return err
		}
		if err := syncDir(path); err != nil {
			return err
		}
	}
	for _, f := range files {
		if f == path && keep != "" {
			continue
		}
		if err := errors.Join(remove(f+"-journal"), remove(f)); err != nil {
			return err
		}
	}
	return syncDir(path)
}

// LeftLocked tells whether the store in dir has a lock file that nobody holds. The
// library makes it with mode 0640 and unlinks it after use; one that a power cut left
// keeps out all users but its owner, who alone may open it for writing.
func LeftLocked(dir string) bool {
	f, err := os.OpenFile(filepath.Join(dir, DBName+".lock"), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil
}

// isClean tells whether there is nothing to do, without writing.
func isClean(path string) (bool, error) {
	if LeftLocked(filepath.Dir(path)) {
		return false, nil
	}
	s, err := OpenStore(filepath.Dir(path), ReadOnly)
	switch {
	case err == nil:
		return true, s.Close()
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	case errors.Is(err, ErrUnclean):
		return false, nil
	}
	return false, err
}

// content is what a database has in it, from the least to the most valuable.
type content int

const (
	absent     content = iota
	unfinished         // no byte, or not all tables yet
	empty              // no token
	tokens
)

// inspect opens a database for writing, which rolls back what was cut, and looks.
func inspect(path string) (content, error) {
	if there, err := exists(path); err != nil || !there {
		return absent, err
	}
	db, err := openDB(path, ReadWrite)
	if err != nil {
		return absent, err
	}
	defer db.Close()
	version, err := schemaVersion(db)
	if err != nil && !errors.Is(err, ErrUnclean) {
		return absent, err
	}
	var has, n int
	err = db.QueryRow(`SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'tokens'`).Scan(&has)
	if err != nil {
		return absent, sqliteError(err)
	}
	if has == 1 {
		if err := db.QueryRow(`SELECT count(*) FROM tokens`).Scan(&n); err != nil {
			return absent, sqliteError(err)
		}
	}
	var sound string
	if err := db.QueryRow(`PRAGMA quick_check(1)`).Scan(&sound); err != nil {
		return absent, sqliteError(err)
	}
	switch {
	case sound != "ok":
		return absent, fmt.Errorf("%w: %s", ErrCorrupt, sound)
	case version == 0 && n > 0:
		return absent, fmt.Errorf("%w: tokens without a schema version", ErrCorrupt)
	case version == 0:
		return unfinished, nil
	case n == 0:
		return empty, nil
	}
	return tokens, nil
}

// RemoveStore removes the store in dir with all that may lie beside it: its tokens and
// the links to their keys are gone for good. An absent store is no error.
func RemoveStore(dir string) error {
	path, err := filepath.Abs(filepath.Join(dir, DBName))
	if err != nil {
		return fmt.Errorf("cannot remove the token store: %w", err)
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lock(path)
	if err != nil {
		return fmt.Errorf("cannot remove the token store: %w", err)
	}
	defer unlock()
	// The leftovers first: alone, a .old would come back as the store.
	for _, f := range []string{path + ".bak", path + ".old", path} {
		err = errors.Join(err, remove(f), remove(f+"-journal"))
	}
	if err = errors.Join(err, syncDir(path)); err != nil {
		return fmt.Errorf("cannot remove the token store: %w", err)
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockWait bounds the wait for the lock. The library holds it while it looks at the
// version and migrates: milliseconds, on a slow card a second or two.
const lockWait = 10 * time.Second

// lock takes the library's lock, flock of <db>.lock, which it holds while it checks and
// migrates the store in C_Initialize. The library unlinks the file after use, which
// makes the lock weak: one can hold a file that is no longer there. So the name is
// looked at again once the lock is held; the library does not do that, and callers that
// share a store need a lock of their own besides. The file is removed here too: one
// that root leaves behind could keep the other users of the store out.
func lock(path string) (unlock func(), err error) {
	path += ".lock"
	deadline := time.Now().Add(lockWait)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o660)
		if errors.Is(err, fs.ErrPermission) {
			// Another user's, who was cut; who may read it may lock it all the same.
			f, err = os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
		}
		if err != nil {
			return nil, err
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil && named(f, path) {
			return func() { os.Remove(path); f.Close() }, nil
		}
		f.Close()
		if err != nil && err != syscall.EWOULDBLOCK && err != syscall.EINTR {
			return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%w: %s", ErrBusy, path)
		}
		time.Sleep(pause)
	}
}

func named(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}
