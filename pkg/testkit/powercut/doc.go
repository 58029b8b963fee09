// Package powercut cuts the power of a board in a test: at a command to the
// TPM ([Bus]), at an operation of a program on a file ([Program]), and with what
// a disk keeps of files that were not synced ([Disk]).
//
// A program is traced by ptrace, with a filter of seccomp for the calls that
// may change a file; so the operations of Go, of SQLite and of every library are
// counted alike, in all threads and in the programs that it starts. It takes no
// privilege, Linux 5.3, and amd64 or arm64. The binary of a test is its own
// launcher: its TestMain begins with [Launch].
//
// # What a disk keeps
//
// A cut leaves one of three disks, and a board must come back from each:
//
//   - kept: everything, in the order in which it was done. The cut came late,
//     or only the program has died.
//   - strict: what POSIX promises and no more. A file has the content of its
//     last fsync or fdatasync, a directory the names of its last fsync. A name
//     that its directory was not synced with is not there, nor is the removal of
//     one; a file that was never synced is empty.
//   - hollow: all names, as a file system with a journal for names keeps them,
//     and of data only what was synced: a file that was written and renamed
//     without a sync is there, and empty.
//
// A sync of a directory makes the directories that it names last as well, empty
// unless they were synced themselves; their modes and owners are those of that
// time. A rename from one directory to another is one transaction, as all
// journals have it: a sync of either directory makes it last in both.
//
// Not modelled: a file that was half synced, a write that is torn, and a disk
// that lies about a flush.
package powercut

// Point is where the power is cut: at the n-th event of some kind, before it is
// done or after it. The zero value is nowhere.
type Point struct {
	At    int
	After bool
}

func (p Point) hits(n int, after bool) bool { return p.At == n && p.After == after }
