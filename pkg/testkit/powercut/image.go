package powercut

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Image is what is on a disk: its files, directories and symbolic links by
// their paths, which are relative and separated by slashes; the root is ".".
type Image map[string]Entry

// Entry is one of them.
type Entry struct {
	Mode     fs.FileMode
	UID, GID int
	Time     time.Time // of the last change of the content
	Inode    uint64
	Data     string // of a file; of a link, where it leads
}

// Read takes an image of a directory, without the paths in skip and all below
// them, and without sockets, which no disk keeps.
func Read(root string, skip ...string) (Image, error) {
	image := Image{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		// What a program that is still at work removes meanwhile is gone.
		if errors.Is(err, fs.ErrNotExist) && name != root {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if slices.Contains(skip, rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		entry, err := look(name)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, errNoDisk):
			return nil
		case err != nil:
			return err
		}
		image[rel] = entry
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot take an image of %s: %w", root, err)
	}
	return image, nil
}

// errNoDisk: sockets, pipes and devices are not looked at.
var errNoDisk = errors.New("neither file nor directory nor link")

func look(name string) (Entry, error) {
	info, err := os.Lstat(name)
	if err != nil {
		return Entry{}, err
	}
	e := describe(info)
	switch info.Mode().Type() {
	case fs.ModeDir:
	case fs.ModeSymlink:
		e.Data, err = os.Readlink(name)
	case 0:
		var data []byte
		data, err = os.ReadFile(name)
		e.Data = string(data)
	default:
		return e, errNoDisk
	}
	return e, err
}

func describe(info fs.FileInfo) Entry {
	st := info.Sys().(*syscall.Stat_t)
	return Entry{Mode: info.Mode(), UID: int(st.Uid), GID: int(st.Gid), Time: info.ModTime(), Inode: st.Ino}
}

// Write makes a directory what the image says; what is in it goes.
func (i Image) Write(root string) error {
	if err := i.write(root); err != nil {
		return fmt.Errorf("cannot write an image to %s: %w", root, err)
	}
	return nil
}

func (i Image) write(root string) error {
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	names := i.Names()
	for _, name := range names { // parents come before what is in them
		e, path := i[name], filepath.Join(root, name)
		var err error
		switch e.Mode.Type() {
		case fs.ModeDir:
			err = os.Mkdir(path, 0o700)
		case fs.ModeSymlink:
			err = os.Symlink(e.Data, path)
		default:
			err = os.WriteFile(path, []byte(e.Data), 0o600)
		}
		if err != nil {
			return err
		}
		if os.Geteuid() == 0 {
			if err := os.Lchown(path, e.UID, e.GID); err != nil {
				return err
			}
		}
	}
	// What is in a directory before the directory, whose mode may forbid it and
	// whose time it changes.
	slices.Reverse(names)
	for _, name := range names {
		e, path := i[name], filepath.Join(root, name)
		if e.Mode.Type() == fs.ModeSymlink {
			continue
		}
		if err := os.Chmod(path, e.Mode); err != nil {
			return err
		}
		if err := os.Chtimes(path, e.Time, e.Time); err != nil {
			return err
		}
	}
	return nil
}

// Names are the paths, in order.
func (i Image) Names() []string { return slices.Sorted(maps.Keys(i)) }

// Digest tells images of the same names, modes, owners and contents from
// others.
func (i Image) Digest() string {
	h := sha256.New()
	for _, name := range i.Names() {
		e := i[name]
		fmt.Fprintf(h, "%q %v %d %d %q\n", name, e.Mode, e.UID, e.GID, e.Data)
	}
	return string(h.Sum(nil))
}

// Shape is what two boards have in common that went the same way: names, modes
// and owners, without contents.
func (i Image) Shape() string {
	var b bytes.Buffer
	for _, name := range i.Names() {
		e := i[name]
		fmt.Fprintf(&b, "%v %d:%d %s\n", e.Mode, e.UID, e.GID, name)
	}
	return b.String()
}

// Diff says what is other in a later image, a line each: also a file that was
// written anew with the same content.
func (i Image) Diff(later Image) []string {
	var lines []string
	for _, name := range i.Names() {
		was := i[name]
		is, there := later[name]
		switch {
		case !there:
			lines = append(lines, "gone: "+name)
		case was.Mode != is.Mode || was.UID != is.UID || was.GID != is.GID:
			lines = append(lines, fmt.Sprintf("%s was %v %d:%d, is %v %d:%d", name, was.Mode, was.UID, was.GID, is.Mode, is.UID, is.GID))
		case was.Data != is.Data:
			lines = append(lines, name+" has another content")
		case was.Mode.IsRegular() && (was.Inode != is.Inode || !was.Time.Equal(is.Time)):
			lines = append(lines, name+" was written anew")
		}
	}
	for _, name := range later.Names() {
		if _, there := i[name]; !there {
			lines = append(lines, "new: "+name)
		}
	}
	slices.Sort(lines)
	return lines
}
