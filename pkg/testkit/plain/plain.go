// Package plain lets a test be a plain user, whoever runs it: root may read
// every file, so that a file which may not be read needs somebody else.
package plain

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// User takes from root what lets it read and write all files, until the test
// ends. It holds for this goroutine only.
func User(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	// Capabilities are a thread's; the files stay this user's, as a plain
	// user's are.
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	if err := unix.Capget(&header, &before[0]); err != nil {
		t.Fatalf("capget: %v", err)
	}
	after := before
	after[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
	if err := unix.Capset(&header, &after[0]); err != nil {
		t.Fatalf("capset: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Capset(&header, &before[0]); err != nil {
			t.Fatalf("capset: %v", err) // and the thread ends with the goroutine that holds it
		}
		runtime.UnlockOSThread()
	})
}
