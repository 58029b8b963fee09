package powercut

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// Calls of the kernel that later architectures have only the newer form of.
func init() {
	calls[unix.SYS_OPEN] = call{name: "open", path: 0, flags: 1, dir: atCWD}
	calls[unix.SYS_CREAT] = call{name: "creat", path: 0, dir: atCWD}
	calls[unix.SYS_RENAME] = call{name: "rename", path: 1, dir: atCWD}
	calls[unix.SYS_MKDIR] = call{name: "mkdir", path: 0, dir: atCWD}
	calls[unix.SYS_RMDIR] = call{name: "rmdir", path: 0, dir: atCWD}
	calls[unix.SYS_UNLINK] = call{name: "unlink", path: 0, dir: atCWD}
	calls[unix.SYS_LINK] = call{name: "link", path: 1, dir: atCWD}
	calls[unix.SYS_SYMLINK] = call{name: "symlink", path: 1, dir: atCWD}
	calls[unix.SYS_CHMOD] = call{name: "chmod", path: 0, dir: atCWD}
	calls[unix.SYS_CHOWN] = call{name: "chown", path: 0, dir: atCWD}
	calls[unix.SYS_LCHOWN] = call{name: "lchown", path: 0, dir: atCWD}
}
