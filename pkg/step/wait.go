package step

import (
	"crypto/rand"
	"encoding/binary"
	"time"
)

// Waits is how long a device waits after each failure of a step. A fleet fails
// together: ten thousand devices were powered on, or lost their CA, in the same
// second, and must not come back in the same second.
//
//   - Full jitter: each wait is drawn between nothing and a window, which
//     doubles from failure to failure.
//   - What the other side said (Retry-After) is kept: no wait is shorter. Other
//     devices may have been told the same, so the window lies behind it: as
//     long as a short time, and small beside a long one, because a server that
//     tells each device its turn means it. One that sends a device away at its
//     turn again and again tells all of them the same, and the window grows, by
//     half each time: its size is near enough from the beginning.
//   - Who answers, and has no time, is spared longer than who does not answer: he
//     is there, and there may be a million of us.
//
// scripts/herd shows what becomes of a fleet by these lines. The zero Waits is
// ready; each run of a step has its own.
type Waits struct {
	// Draw draws a time from nothing to limit, each as likely as the other. Nil
	// draws from crypto/rand, which waits until the kernel has its seed: boards
	// with the same image begin with the same memory.
	Draw func(limit time.Duration) time.Duration

	silent, busy int // failures in this run, of each kind
}

// Setback is what is known of a failure.
type Setback struct {
	// Busy: the other side answered, but not now.
	Busy bool
	// After is how long the other side said to wait; nothing, if it did not.
	After time.Duration
	// Failures is how often it was busy before this run.
	Failures int
	// Drawn: nobody was asked, because an earlier run was told to wait, and
	// After is what is left of the wait that was drawn then.
	Drawn bool
}

const (
	// firstWindow is where nothing was said.
	firstWindow = 2 * time.Second
	// Where something was said the window is as long as that, up to half a minute;
	// or an eighth of it, if that is longer.
	shortTime = 30 * time.Second
	share     = 8
	// A window behind a time that was said stays for so many failures.
	patience = 3
	// The longest windows. What does not answer may be a cable that somebody is
	// about to plug in.
	longestSilent = 2 * time.Minute
	longestBusy   = time.Hour
)

// Next counts a failure. It gives the wait before the next try, and whether
// that ends in the time that is left.
func (w *Waits) Next(s Setback, left time.Duration) (wait time.Duration, inTime bool) {
	wait = max(s.After, 0)
	if !s.Drawn {
		wait += w.draw(w.window(s))
	}
	return wait, wait <= left
}

// Failures is how often the other side was busy, in this run.
func (w *Waits) Failures() int { return w.busy }

// window is what the wait is drawn from.
func (w *Waits) window(s Setback) time.Duration {
	if !s.Busy && s.After <= 0 {
		w.silent++
		return doubled(w.silent, longestSilent)
	}
	w.busy++
	n := s.Failures + w.busy
	if s.After <= 0 {
		return doubled(n, longestBusy)
	}
	window := max(firstWindow, min(s.After, shortTime), s.After/share)
	longest := max(longestBusy, s.After/share)
	for ; n > patience && window < longest; n-- {
		window += window / 2
	}
	return min(window, longest)
}

// doubled is the first window, doubled for each failure after the first.
func doubled(failures int, longest time.Duration) time.Duration {
	window := firstWindow
	for ; failures > 1 && window < longest; failures-- {
		window *= 2
	}
	return min(window, longest)
}

func (w *Waits) draw(limit time.Duration) time.Duration {
	if w.Draw != nil {
		return w.Draw(limit)
	}
	var b [8]byte
	rand.Read(b[:]) // it never fails
	return time.Duration(binary.LittleEndian.Uint64(b[:]) % uint64(limit+1))
}
