package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// An entry is a name in a folder. Links are not followed.
type entry struct {
	name  string
	mode  uint32 // as in a Unix inode: type and permissions
	uid   int
	inode string // in an image
	path  string // in a folder of this machine
}

func (e entry) isDir() bool  { return e.mode&syscall.S_IFMT == syscall.S_IFDIR }
func (e entry) isFile() bool { return e.mode&syscall.S_IFMT == syscall.S_IFREG }

// A tree is a root file system. Paths are absolute in it, and so are the
// targets of its links.
type tree interface {
	name() string
	// list gives what is in a folder, to which the path may lead over links;
	// nothing where there is no such folder.
	list(dir string) ([]entry, error)
	// read gives the content of a file.
	read(entry) ([]byte, error)
}

// open finds the trees in an image, or in a folder.
func open(name string) ([]tree, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refuse(64, "cannot read %s: there is no such file or folder; check the name", name)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", name, errors.Unwrap(err))
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.IsDir():
		return images(f, name)
	}
	f.Close()
	t := folder(name)
	if etc, err := t.list("/etc"); err != nil || len(etc) == 0 {
		return nil, errors.Join(err, fmt.Errorf("cannot find a root file system in %s: it has no folder etc with files; name the folder that becomes /", name))
	}
	return []tree{t}, nil
}

// --- a folder ---------------------------------------------------------------

type folder string

func (t folder) name() string { return string(t) }

func (t folder) list(dir string) ([]entry, error) {
	dir, err := t.resolve(dir)
	if err != nil {
		return nil, err
	}
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var entries []entry
	for _, n := range names {
		e := entry{name: n.Name(), path: filepath.Join(dir, n.Name())}
		info, err := n.Info()
		if err != nil {
			return nil, err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil, fmt.Errorf("%s: this system tells no owner", e.path)
		}
		e.mode, e.uid = st.Mode, int(st.Uid)
		entries = append(entries, e)
	}
	return entries, nil
}

// resolve follows links as a process does whose root the folder is: an
// absolute target is never one of this machine.
func (t folder) resolve(p string) (string, error) {
	done, rest := "/", strings.Split(p, "/")
	for links := 0; len(rest) > 0; {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		target, err := os.Readlink(filepath.Join(string(t), next))
		if err != nil { // no link; whether there is anything is seen by who opens it
			done = next
			continue
		}
		if links++; links > 40 {
			return "", fmt.Errorf("%s: too many links", p)
		}
		if path.IsAbs(target) {
			done = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return filepath.Join(string(t), done), nil
}

func (t folder) read(e entry) ([]byte, error) {
	// The name may have become a link or a pipe since it was listed.
	f, err := os.OpenFile(e.path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// --- an image ---------------------------------------------------------------

// A partition is an ext2, ext3 or ext4 file system in an image. It is read by
// debugfs, which needs no mount, no root, and writes nothing.
type partition struct {
	image  *os.File
	number int
	offset int64
	seed   bool // a FAT partition of the image has the boot loader's random seed
}

func (t *partition) name() string { return fmt.Sprintf("partition %d", t.number) }

func (t *partition) list(dir string) ([]entry, error) {
	if t.seed && dir == loaderDir {
		return []entry{{name: "random-seed", mode: syscall.S_IFREG | 0o600}}, nil
	}
	// The dot makes debugfs follow a link in the last place too.
	out, said, err := t.debugfs("ls -p " + strings.TrimSuffix(dir, "/") + "/.")
	if err != nil {
		return nil, err
	}
	if strings.Contains(said, "File not found") || strings.Contains(said, "not a directory") {
		return nil, nil
	}
	if said != "" {
		return nil, fmt.Errorf("%s: %s", dir, said)
	}
	var entries []entry
	for line := range strings.Lines(string(out)) {
		// /INODE/MODE/UID/GID/NAME/SIZE/
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "/")
		if len(fields) != 8 || fields[5] == "." || fields[5] == ".." || fields[1] == "0" {
			continue
		}
		mode, err := strconv.ParseUint(fields[2], 8, 32)
		if err != nil {
			return nil, fmt.Errorf("%s: cannot read what debugfs says: %q", dir, line)
		}
		uid, err := strconv.Atoi(fields[3])
		if err != nil {
			return nil, fmt.Errorf("%s: cannot read what debugfs says: %q", dir, line)
		}
		entries = append(entries, entry{name: fields[5], mode: uint32(mode), uid: uid, inode: fields[1]})
	}
	return entries, nil
}

func (t *partition) read(e entry) ([]byte, error) {
	// By number: a name may have any character in it.
	out, said, err := t.debugfs("cat <" + e.inode + ">")
	if err == nil && said != "" {
		err = fmt.Errorf("%s: %s", e.name, said)
	}
	if len(out) > maxFile {
		out = out[:maxFile]
	}
	return out, err
}

// debugfs runs one request and gives what it printed, and what it complained.
func (t *partition) debugfs(request string) (out []byte, said string, err error) {
	out, stderr, err := tool(t.image, "debugfs", "-c", "-R", request, fmt.Sprintf("/proc/self/fd/3?offset=%d", t.offset))
	var complaints []string
	for line := range strings.Lines(stderr) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "debugfs 1.") {
			complaints = append(complaints, line)
		}
	}
	return out, strings.Join(complaints, "; "), err
}

// tool runs a program that reads the image, which it finds as its file 3: the
// name of an image may have characters that mean something to these programs.
func tool(image *os.File, name string, args ...string) (out []byte, stderr string, err error) {
	cmd := exec.Command(name, args...)
	cmd.ExtraFiles = []*os.File{image}
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MTOOLS_SKIP_CHECK=1", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if cmd.Err != nil { // a user's PATH has no sbin
		cmd.Path, cmd.Err = "/usr/sbin/"+name, nil
	}
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err = cmd.Run()
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return nil, "", refuse(69, "cannot find the program %s: install Debian's e2fsprogs, fdisk and mtools", name)
	}
	return o.Bytes(), e.String(), err
}

// images finds the root file systems in an image.
func images(f *os.File, name string) ([]tree, error) {
	places := []partition{{image: f}} // the file may be one file system, without partitions
	if !isExt(f, 0) {
		table, err := partitions(f, name)
		if err != nil {
			return nil, err
		}
		places = table
	}
	var trees []tree
	seed := false
	for _, p := range places {
		switch {
		case isExt(f, p.offset):
			etc, err := p.list("/etc")
			if err != nil {
				return nil, fmt.Errorf("cannot read partition %d of %s: %w", p.number, name, err)
			}
			if len(etc) > 0 {
				trees = append(trees, &p)
			}
		case isFAT(f, p.offset):
			_, _, err := tool(f, "mdir", "-b", "-i", fmt.Sprintf("/proc/self/fd/3@@%d", p.offset), "::/loader/random-seed")
			var e exit
			if errors.As(err, &e) {
				return nil, err
			}
			seed = seed || err == nil
		}
	}
	if len(trees) == 0 {
		return nil, fmt.Errorf("cannot find a root file system in %s: no partition is an ext4 file system with a folder /etc; other file systems are not supported", name)
	}
	if first, ok := trees[0].(*partition); ok {
		first.seed = seed
	}
	return trees, nil
}

// partitions reads the partition table of an image.
func partitions(f *os.File, name string) ([]partition, error) {
	out, _, err := tool(f, "sfdisk", "--json", "/proc/self/fd/3")
	var e exit
	if errors.As(err, &e) {
		return nil, err
	}
	var disk struct {
		Table struct {
			SectorSize int64 `json:"sectorsize"`
			Partitions []struct {
				Start int64 `json:"start"`
			} `json:"partitions"`
		} `json:"partitiontable"`
	}
	if err == nil {
		err = json.Unmarshal(out, &disk)
	}
	if err != nil || len(disk.Table.Partitions) == 0 {
		why := "it has neither a partition table nor an ext4 file system"
		if compressed(f) {
			why = "it is compressed: unpack it first"
		}
		return nil, fmt.Errorf("cannot use %s as an image: %s", name, why)
	}
	var parts []partition
	for i, p := range disk.Table.Partitions {
		parts = append(parts, partition{image: f, number: i + 1, offset: p.Start * max(disk.Table.SectorSize, 512)})
	}
	return parts, nil
}

func isExt(f io.ReaderAt, offset int64) bool {
	var magic [2]byte
	_, err := f.ReadAt(magic[:], offset+1024+56)
	return err == nil && binary.LittleEndian.Uint16(magic[:]) == 0xEF53
}

func isFAT(f io.ReaderAt, offset int64) bool {
	var sector [512]byte
	_, err := f.ReadAt(sector[:], offset)
	return err == nil && (string(sector[82:85]) == "FAT" || string(sector[54:57]) == "FAT")
}

// compressed says whether the file begins as one of xz, gzip, zstd or zip.
func compressed(f io.ReaderAt) bool {
	start := make([]byte, 6)
	n, _ := f.ReadAt(start, 0) // a shorter file has no such beginning
	for _, magic := range []string{"\xfd7zXZ\x00", "\x1f\x8b", "\x28\xb5\x2f\xfd", "PK\x03\x04"} {
		if strings.HasPrefix(string(start[:n]), magic) {
			return true
		}
	}
	return false
}

// maxFile is more than any file has that is looked into.
const maxFile = 1 << 20
