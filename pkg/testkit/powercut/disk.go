package powercut

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Disk follows what of a directory would survive a loss of power. The package
// documentation has its rules.
type Disk struct {
	root string
	skip []string
	top  uint64
	// Directories and files by inode, as they were last made to last.
	names map[uint64]map[string]uint64
	nodes map[uint64]*node
}

// node is a file, directory or link that has been made to last, or its name.
type node struct {
	Entry
	// pin keeps the kernel from giving the inode's number to another file.
	pin *os.File
}

// NewDisk begins with all that is there on the disk for certain.
func NewDisk(root string, skip ...string) (*Disk, error) {
	d := &Disk{root: root, skip: skip, names: map[uint64]map[string]uint64{}, nodes: map[uint64]*node{}}
	image, err := Read(root, skip...)
	if err != nil {
		return nil, err
	}
	for name, e := range image {
		if err := d.keep(filepath.Join(root, name), e); err != nil {
			d.Close()
			return nil, err
		}
		if e.Mode.IsDir() && d.names[e.Inode] == nil {
			d.names[e.Inode] = map[string]uint64{}
		}
		if name == "." {
			d.top = e.Inode
			continue
		}
		parent := image[path.Dir(name)].Inode
		if d.names[parent] == nil {
			d.names[parent] = map[string]uint64{}
		}
		d.names[parent][path.Base(name)] = e.Inode
	}
	return d, nil
}

// keep makes an inode, as it is, one that lasts.
func (d *Disk) keep(name string, e Entry) error {
	if have := d.nodes[e.Inode]; have != nil {
		have.Entry = e
		return nil
	}
	flags := unix.O_PATH | unix.O_CLOEXEC
	// In /proc a name is a link to what is meant; elsewhere a link is itself meant.
	if !strings.HasPrefix(name, "/proc/") {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := unix.Open(name, flags, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	d.nodes[e.Inode] = &node{e, os.NewFile(uintptr(fd), name)}
	return nil
}

// Synced notes an fsync of what name leads to, below the directory: a path, or
// a descriptor in /proc.
func (d *Disk) Synced(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return fmt.Errorf("cannot follow a sync: %w", err)
	}
	if info.IsDir() {
		err = d.syncedDir(name, describe(info))
	} else {
		e := describe(info)
		var data []byte
		if data, err = os.ReadFile(name); err == nil {
			e.Data = string(data)
			err = d.keep(name, e)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot follow a sync: %w", err)
	}
	return nil
}

// find is the path of an inode now.
func (d *Disk) find(inode uint64) (string, bool) {
	found := ""
	_ = filepath.WalkDir(d.root, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := os.Lstat(name); err == nil && describe(info).Inode == inode {
			found = name
			return fs.SkipAll
		}
		return nil
	})
	return found, found != ""
}

func (d *Disk) syncedDir(name string, dir Entry) error {
	entries, err := os.ReadDir(name)
	if err != nil {
		return err
	}
	if err := d.keep(name, dir); err != nil {
		return err
	}
	before, now := d.names[dir.Inode], map[string]uint64{}
	here := map[uint64]bool{}
	for _, entry := range entries {
		at := filepath.Join(name, entry.Name())
		e, err := look(at)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoDisk) {
			continue
		}
		if err != nil {
			return err
		}
		now[entry.Name()], here[e.Inode] = e.Inode, true
		if d.nodes[e.Inode] == nil {
			// The name lasts, and what it names is empty as yet.
			if e.Mode.IsRegular() {
				e.Data = ""
			}
			if e.Mode.IsDir() {
				d.names[e.Inode] = map[string]uint64{}
			}
			if err := d.keep(at, e); err != nil {
				return err
			}
		}
	}
	d.names[dir.Inode] = now
	return d.renames(dir.Inode, before, here)
}

// renames: a rename from one directory to another is one transaction of the
// file system, so a sync of either makes it last in both.
func (d *Disk) renames(dir uint64, before map[string]uint64, here map[uint64]bool) error {
	for other, names := range d.names {
		if other == dir {
			continue
		}
		for name, inode := range names {
			if !here[inode] {
				continue
			}
			at, found := d.find(other)
			if !found {
				continue
			}
			if info, err := os.Lstat(filepath.Join(at, name)); err != nil || describe(info).Inode != inode {
				delete(names, name)
			}
		}
	}
	for _, inode := range before {
		if here[inode] {
			continue
		}
		at, found := d.find(inode)
		if !found {
			continue
		}
		info, err := os.Lstat(filepath.Dir(at))
		if err != nil {
			return err
		}
		if names := d.names[describe(info).Inode]; names != nil {
			names[filepath.Base(at)] = inode
		}
	}
	return nil
}

// Kept is the disk after a cut that the page cache survived: all is there.
func (d *Disk) Kept() (Image, error) { return Read(d.root, d.skip...) }

// Strict is the disk with nothing on it but what was synced: a file with its
// last synced content under the name that its directory had when that was
// synced.
func (d *Disk) Strict() Image {
	image := Image{}
	d.strict(image, ".", d.top)
	return image
}

func (d *Disk) strict(image Image, name string, inode uint64) {
	image[name] = d.nodes[inode].Entry
	for child, inode := range d.names[inode] {
		d.strict(image, path.Join(name, child), inode)
	}
}

// Hollow is the disk of a journaling file system that keeps names in order and
// data not: every name is there, and a file has its last synced content, or
// none if it never was.
func (d *Disk) Hollow() (Image, error) {
	image, err := d.Kept()
	if err != nil {
		return nil, err
	}
	for name, e := range image {
		if !e.Mode.IsRegular() {
			continue
		}
		e.Data = ""
		if n := d.nodes[image[name].Inode]; n != nil {
			e.Data = n.Data
		}
		image[name] = e
	}
	return image, nil
}

// Close lets the inodes go.
func (d *Disk) Close() {
	for _, n := range d.nodes {
		n.pin.Close()
	}
}
