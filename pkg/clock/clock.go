// Package clock tells which time certificates are judged at.
//
// A board without a battery wakes up in 1970, or at the time at which it was
// switched off, until somebody synchronises its clock; and that may need the
// network whose servers' certificates are to be judged. So the time is at
// least the latest that is known to have passed: when this program was built,
// and when the CA certificates that the configuration pins became valid. Such
// a time is good enough to tell that a certificate is not expired, and may be
// too early for a fresh one: while [Clock.Verified] is false, nobody calls a
// certificate bad for its dates alone.
package clock

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Clock is the time that certificates are judged at.
type Clock struct {
	Time     time.Time
	Verified bool   // the kernel calls the clock synchronised, and it is not behind a floor
	Why      string // why it is not verified

	ahead bool // beyond belief
}

// horizon is how long after its build a program believes a clock that nobody
// synchronised. A clock chip that lost its battery may say 2036, 2038 or 2099,
// and every certificate would be expired.
const horizon = 10 * 365 * 24 * time.Hour

// Read reads the clock. The floors are times that have passed for certain: the
// notBefore of each pinned CA.
func Read(floors ...time.Time) Clock {
	return Judge(time.Now(), synchronised(), Built(), floors...)
}

// Judge is what Read says of a clock that stands at now.
func Judge(now time.Time, synchronised bool, built time.Time, floors ...time.Time) Clock {
	c := Clock{Time: now, Verified: synchronised}
	if !synchronised {
		c.Why = "the kernel does not call the clock synchronised"
		if c.ahead = !built.IsZero() && now.After(built.Add(horizon)); c.ahead {
			c.Why = c.beyond()
		}
	}
	raise := func(floor time.Time, what string) {
		if floor.After(c.Time) {
			c.Time, c.Verified = floor, false
			c.Why = fmt.Sprintf("the clock stands at %s, before %s (%s)", date(now), what, date(floor))
		}
	}
	raise(built, "this program was built")
	for _, floor := range floors {
		raise(floor, "a CA certificate of the configuration became valid")
	}
	return c
}

// Err is not nil when the clock is ahead beyond belief. It is Temporary: the
// network sets such a clock right. A clock that the kernel calls synchronised
// is believed at any time, so that no build of this program ever expires.
func (c Clock) Err() error {
	if !c.ahead {
		return nil
	}
	return step.As(step.Temporary, "set the clock, or let it be synchronised: timedatectl shows how it stands",
		errors.New("cannot judge certificates: "+c.beyond()))
}

func (c Clock) beyond() string {
	return fmt.Sprintf("the clock stands at %s, which nobody vouches for", date(c.Time))
}

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// built is set when a release is linked, in seconds since 1970:
//
//	-ldflags "-X github.com/tpm2cloud/tpm2cloud/pkg/clock.built=$SOURCE_DATE_EPOCH"
var built string

// Built is when this program was built, or when its source was committed where
// the build did not say, or zero.
func Built() time.Time {
	if s, err := strconv.ParseInt(built, 10, 64); err == nil {
		return time.Unix(s, 0).UTC()
	}
	info, _ := debug.ReadBuildInfo()
	return committed(info)
}

func committed(info *debug.BuildInfo) time.Time {
	if info != nil {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" {
				t, _ := time.Parse(time.RFC3339, s.Value) // zero on error, which is what it is then
				return t
			}
		}
	}
	return time.Time{}
}

// synchronised asks the kernel what NTP, PTP or whoever steers the clock told
// it (adjtimex(2)). Where it may not be asked nobody vouches for the clock.
func synchronised() bool {
	var t unix.Timex // no modes: this only reads
	state, err := unix.Adjtimex(&t)
	return err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
}
