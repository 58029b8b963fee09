package systemd

import (
	"errors"
	"net"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"
)

// Event is a MESSAGE_ID: what a machine waits for in the journal, and what
// systemd/tpm2cloud.catalog explains (journalctl -x). The numbers never change.
type Event string

const (
	Ready         Event = "0f38fff7aebd4ad680356daccda90013"
	NoTPM         Event = "c8d8dc61005d4831bd8f6c51911eff95"
	NotGenuine    Event = "9046f95e3d984a96b9f16fd6f281fda5"
	Waiting       Event = "b2cff04b43674137b909319990105b67"
	ServerRefused Event = "07ca3320020d4d8db355a86f0bdf220d"
	GaveUp        Event = "3f94308b1740404580b80f6013d1fb1b"
	OtherTPM      Event = "a9f716547000468f9e8f4d227bcd7683"
	CannotGoOn    Event = "704aeab29c6848b193ea763b1305b146"
)

// Priority is how much a message matters (syslog(3)).
type Priority journal.Priority

const (
	Error   = Priority(journal.PriErr)
	Warning = Priority(journal.PriWarning)
	Notice  = Priority(journal.PriNotice)
)

// Journal writes messages of a program to the journal. A nil Journal writes
// nothing.
type Journal struct{ program string }

// OpenJournal is the journal, if standard error goes there: a program that a
// person runs in a terminal, or whose output is in a file, gets nil.
func OpenJournal(program string) *Journal {
	if ours, err := journal.StderrIsJournalStream(); err != nil || !ours {
		return nil
	}
	return &Journal{program}
}

// Send writes one message with its fields, of which empty ones are left out,
// and says whether the journal has it. The event may be "".
func (j *Journal) Send(priority Priority, event Event, message string, fields map[string]string) bool {
	if j == nil {
		return false
	}
	// The kernel's name of a process has room for 15 letters.
	vars := map[string]string{"SYSLOG_IDENTIFIER": j.program}
	if event != "" {
		vars["MESSAGE_ID"] = string(event)
	}
	for name, value := range fields {
		if value != "" {
			vars["TPM2CLOUD_"+name] = value
		}
	}
	return journal.Send(message, journal.Priority(priority), vars) == nil
}

const (
	journalSocket = "/run/systemd/journal/socket"
	// flushLimit bounds the wait for a journal that hangs.
	flushLimit = time.Second
)

// Flush waits until the journal has taken what was sent. It looks up the unit
// of a message's sender in /proc; of a process that has ended by then, it
// cannot tell the unit, and "journalctl -u" would not show why it failed.
func (j *Journal) Flush() {
	if j == nil {
		return
	}
	// What cannot be waited for is lost or not; there is nobody to tell.
	_ = flush(journalSocket, flushLimit)
}

// flush sends an empty message. The journal takes messages one after the other,
// so when this one has left the socket's queue, those before it are done with.
func flush(path string, limit time.Duration) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("\n")); err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		var queued int
		var failed error
		err := raw.Control(func(fd uintptr) { queued, failed = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
		if err != nil || failed != nil || queued == 0 {
			return errors.Join(err, failed)
		}
	}
	return os.ErrDeadlineExceeded
}
