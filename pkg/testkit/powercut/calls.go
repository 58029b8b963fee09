//go:build amd64 || arm64

package powercut

import "golang.org/x/sys/unix"

// call is a call of the kernel that may change a disk: which of its arguments
// say what it is about.
type call struct {
	name string
	fd   int  // the argument that is the file, from 1 on; 0: none is
	sync bool // what was written before it lasts
	// else the number of the argument that is a path, and of that which is the
	// directory it begins in
	path, dir int
	flags     int // the number of open's flags; 0: there are none
	how       int // the number of a pointer to them (openat2)

	// Of one that is under way.
	args   [6]uint64
	number int // among the operations
}

// atCWD: there is no such argument, and a path begins in the working directory.
const atCWD = -1

// calls are those that are counted. Of a rename it is the new name that tells
// whether the disk is concerned.
var calls = map[uint64]call{
	unix.SYS_OPENAT:          {name: "openat", path: 1, flags: 2},
	unix.SYS_OPENAT2:         {name: "openat2", path: 1, how: 2},
	unix.SYS_WRITE:           {name: "write", fd: 1},
	unix.SYS_PWRITE64:        {name: "pwrite", fd: 1},
	unix.SYS_WRITEV:          {name: "writev", fd: 1},
	unix.SYS_PWRITEV:         {name: "pwritev", fd: 1},
	unix.SYS_PWRITEV2:        {name: "pwritev2", fd: 1},
	unix.SYS_SENDFILE:        {name: "sendfile", fd: 1},
	unix.SYS_FTRUNCATE:       {name: "ftruncate", fd: 1},
	unix.SYS_FALLOCATE:       {name: "fallocate", fd: 1},
	unix.SYS_FSYNC:           {name: "fsync", fd: 1, sync: true},
	unix.SYS_FDATASYNC:       {name: "fdatasync", fd: 1, sync: true},
	unix.SYS_FCHMOD:          {name: "fchmod", fd: 1},
	unix.SYS_FCHOWN:          {name: "fchown", fd: 1},
	unix.SYS_TRUNCATE:        {name: "truncate", path: 0, dir: atCWD},
	unix.SYS_RENAMEAT:        {name: "renameat", path: 3, dir: 2},
	unix.SYS_RENAMEAT2:       {name: "renameat2", path: 3, dir: 2},
	unix.SYS_MKDIRAT:         {name: "mkdirat", path: 1},
	unix.SYS_UNLINKAT:        {name: "unlinkat", path: 1},
	unix.SYS_LINKAT:          {name: "linkat", path: 3, dir: 2},
	unix.SYS_SYMLINKAT:       {name: "symlinkat", path: 2, dir: 1},
	unix.SYS_FCHMODAT:        {name: "fchmodat", path: 1},
	unix.SYS_FCHMODAT2:       {name: "fchmodat2", path: 1},
	unix.SYS_FCHOWNAT:        {name: "fchownat", path: 1},
	unix.SYS_COPY_FILE_RANGE: {name: "copy_file_range", fd: 3},
	unix.SYS_SYNCFS:          {name: "syncfs", path: atCWD},
	unix.SYS_SYNC:            {name: "sync", path: atCWD},
	unix.SYS_SYNC_FILE_RANGE: {name: "sync_file_range", fd: 1},
}
