package systemd

import (
	"github.com/coreos/go-systemd/v22/journal"
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
