package store

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Lock is the run lock: programs that change the TPM or the files hold it, one
// at a time, for as long as they run.
type Lock struct{ f *os.File }

// LockedError: another program of ours is at work.
type LockedError struct {
	Path   string // of the lock
	Holder int    // the process that holds it, 0 where the kernel does not say
}

// Error names the holder's program as well, while that still runs.
func (e *LockedError) Error() string {
	holder := "another tpm2cloud program"
	if e.Holder != 0 {
		holder = fmt.Sprintf("process %d", e.Holder)
		if name := programOf(e.Holder); name != "" {
			holder = fmt.Sprintf("%s (process %d)", name, e.Holder)
		}
	}
	return holder + " holds " + e.Path
}

// TryLock takes the lock, or fails with a LockedError at once. The kernel frees
// it when the process ends, however it ends.
func (d *Dir) TryLock(file string) (*Lock, error) {
	if err := d.open(true); err != nil {
		return nil, err
	}
	f, err := d.root.OpenFile(file, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		if trapped := d.Plain(file); trapped != nil {
			return nil, trapped
		}
		return nil, fail(err, "open the lock %s", d.Path(file))
	}
	if err := d.give(f, file); err != nil {
		f.Close()
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &LockedError{Path: d.Path(file), Holder: holder(f)}
		}
		return nil, fmt.Errorf("cannot lock %s: %w", d.Path(file), err)
	}
	return &Lock{f}, nil
}

// give gives a file that is open to the owner of its directory, as inherited has it.
func (d *Dir) give(f *os.File, file string) error {
	owner, err := inherited(d.root.Stat(path.Dir(file)))
	if err != nil || owner == nil {
		return nil // who cannot be asked is given nothing
	}
	info, err := f.Stat()
	if err != nil {
		return fail(err, "look at %s", d.Path(file))
	}
	if st := info.Sys().(*syscall.Stat_t); int(st.Uid) == owner.UID && int(st.Gid) == owner.GID {
		return nil
	}
	if err := d.single(f, file); err != nil {
		return err
	}
	if err := f.Chown(owner.UID, owner.GID); err != nil {
		return fail(err, "give %s to its owner", d.Path(file))
	}
	return nil
}

// Unlock frees the lock.
func (l *Lock) Unlock() error { return l.f.Close() }

// holder is the process that holds the lock of a file, as the kernel lists it
// (proc_locks(5)), or 0. Nothing is written into the file for this: a run that
// finds everything present writes none.
func holder(f *os.File) int {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	// The kernel's own numbers of a device (makedev(3)).
	dev := uint64(st.Dev)
	major, minor := dev>>8&0xfff|dev>>32&^0xfff, dev&0xff|dev>>12&^0xff
	inode := fmt.Sprintf("%02x:%02x:%d", major, minor, st.Ino)
	list, err := os.Open("/proc/locks")
	if err != nil {
		return 0
	}
	defer list.Close()
	for s := bufio.NewScanner(list); s.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 4711 fe:00:10011121 0 EOF
		// Who waits has an arrow after the number.
		if field := strings.Fields(s.Text()); len(field) >= 6 && field[1] == "FLOCK" && field[3] == "WRITE" && field[5] == inode {
			pid, _ := strconv.Atoi(field[4])
			return pid
		}
	}
	return 0
}

// programOf is the name that a process was started by, or nothing where it may
// not be seen (hidepid, another PID namespace) or has ended.
func programOf(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	name, _, _ := strings.Cut(string(data), "\x00")
	if name = filepath.Base(name); name == "." || !printable(name) {
		return ""
	}
	return name
}

// printable says whether a name is fit for a line of the journal.
func printable(name string) bool {
	for _, r := range name {
		if !strconv.IsPrint(r) {
			return false
		}
	}
	return true
}
