// Package systemd tells the service manager how a run goes on. Outside a unit
// (no $NOTIFY_SOCKET) all of it does nothing.
package systemd

import (
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Status is the line that `systemctl status` shows.
func Status(format string, args ...any) {
	// Nobody can do anything about a manager that does not listen.
	_, _ = daemon.SdNotify(false, "STATUS="+fmt.Sprintf(format, args...))
}

// Extend asks for more time before the start of the unit counts as failed.
func Extend(d time.Duration) {
	_, _ = daemon.SdNotify(false, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()))
}
