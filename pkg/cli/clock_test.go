package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

var (
	built = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	in    = func(year int) clock.Clock {
		return clock.Judge(time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC), false, built)
	}
)

// A clock at 2038 or 2099 is waited for, because the network sets it right, and
// no longer than the run may last. One that is behind is not: it has a floor.
func TestAwaitClock(t *testing.T) {
	for name, test := range map[string]struct {
		year int
		set  time.Duration // when somebody sets it right
		took time.Duration
		err  string
	}{
		"1970":            {year: 1970},
		"2000":            {year: 2000},
		"2027":            {year: 2027},
		"2038":            {year: 2038, set: 90 * time.Second, took: 90 * time.Second},
		"2099":            {year: 2099, set: 90 * time.Second, took: 90 * time.Second},
		"2099, and stays": {year: 2099, set: time.Hour, took: 10*time.Minute - clockPoll, err: "cannot judge certificates: the clock stands at 2099-01-01T00:00:00Z, which nobody vouches for"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var stderr bytes.Buffer
				begin := time.Now()
				read := func() clock.Clock {
					if test.set > 0 && time.Since(begin) >= test.set {
						return clock.Judge(built, true, built)
					}
					return in(test.year)
				}
				now, err := (&run{command: command{stderr: &stderr}}).await(t.Context(), read, begin.Add(10*time.Minute))
				took := time.Since(begin)
				if (took-test.took).Abs() > clockPoll || now.Verified != (test.took > 0 && test.err == "") {
					t.Errorf("%+v after %s", now, took)
				}
				if test.err == "" && err != nil || test.err != "" && (err == nil || err.Error() != test.err || step.ClassOf(err) != step.Temporary || step.HintOf(err) == "") {
					t.Errorf("%v, class %d, hint %q", err, step.ClassOf(err), step.HintOf(err))
				}
				if lines := strings.Count(stderr.String(), "waiting: "); lines != map[bool]int{true: 1}[test.took > 0] {
					t.Errorf("it says that it waits %d times: %q", lines, &stderr)
				}
			})
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&run{command: command{stderr: new(bytes.Buffer)}}).await(ctx, func() clock.Clock { return in(2099) }, time.Now().Add(time.Hour)); !errors.Is(err, context.Canceled) {
		t.Errorf("a signal while it waits: %v", err)
	}
}

// The status says when the clock is not verified, and why.
func TestStatusClock(t *testing.T) {
	for _, test := range []struct {
		clock clock.Clock
		why   string
	}{
		{in(1970), "the clock stands at 1970-01-01T00:00:00Z, before this program was built (2026-06-01T00:00:00Z)"},
		{in(2027), "the kernel does not call the clock synchronised"},
		{in(2099), "the clock stands at 2099-01-01T00:00:00Z, which nobody vouches for"},
		{clock.Judge(built, true, built), ""},
	} {
		session := Session{Clock: func() clock.Clock { return test.clock }}
		var text, data bytes.Buffer
		if err := (&run{command: command{stdout: &text}}).status(t.Context(), session); err != nil {
			t.Fatal(err)
		}
		want := ""
		if test.why != "" {
			want = "clock unverified: " + test.why + "\n"
		}
		if text.String() != want {
			t.Errorf("it says %q, want %q", &text, want)
		}
		if err := (&run{command: command{stdout: &data, json: true}}).status(t.Context(), session); err != nil {
			t.Fatal(err)
		}
		var said struct{ Clock clockState }
		if err := json.Unmarshal(data.Bytes(), &said); err != nil {
			t.Fatal(err)
		}
		if c := said.Clock; c.Verified != (test.why == "") || c.Why != test.why || !c.Time.Equal(test.clock.Time) {
			t.Errorf("it says %s", &data)
		}
	}
}
