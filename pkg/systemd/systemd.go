// Package systemd tells the service manager how a run goes on, and the journal
// what became of it. Outside a unit all of it does nothing.
package systemd

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Status is the line that `systemctl status` shows.
func Status(format string, args ...any) {
	// One assignment is one line; the text of an error may have several.
	line := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	// Nobody can do anything about a manager that does not listen.
	_, _ = daemon.SdNotify(false, "STATUS="+line)
}

// Unit says whether systemd runs this program, and not a person.
func Unit() bool { return os.Getenv("INVOCATION_ID") != "" }

// Extend asks for more time before the start of the unit counts as failed.
func Extend(d time.Duration) {
	_, _ = daemon.SdNotify(false, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()))
}
