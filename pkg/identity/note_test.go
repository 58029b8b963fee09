package identity

import (
	"testing"
	"time"
)

// The waits double from an hour to a day, each up to a quarter longer or shorter.
func TestRefusalWait(t *testing.T) {
	for n, mean := range map[int]time.Duration{
		1: time.Hour, 2: 2 * time.Hour, 4: 8 * time.Hour, 5: 16 * time.Hour, 6: 24 * time.Hour, 1000000: 24 * time.Hour,
	} {
		seen := map[time.Duration]bool{}
		for range 20 {
			wait := refusalWait(n)
			if wait < mean-mean/4 || wait > mean+mean/4 {
				t.Errorf("after %d refusals: %s, want %s and a quarter more or less", n, wait, mean)
			}
			seen[wait] = true
		}
		if len(seen) < 2 {
			t.Errorf("after %d refusals every device waits the same", n)
		}
	}
}

// A note of the future was written while the clock was wrong, and one without an
// end by nobody.
func TestNoteStands(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		at, until time.Duration
		want      bool
	}{{-time.Minute, time.Hour, true}, {-2 * time.Hour, -time.Hour, false}, {time.Hour, 2 * time.Hour, false}, {-time.Hour, 1000 * time.Hour, false}} {
		n := note{At: now.Add(c.at), Until: now.Add(c.until)}
		if n.stands(now) != c.want {
			t.Errorf("%v: want %t", n, c.want)
		}
	}
}

// How often the server was busy counts for a day after the time of the note.
func TestNoteRecent(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		at, until time.Duration
		times     int
		want      bool
	}{
		{-2 * time.Hour, -time.Hour, 3, true},
		{-time.Hour, time.Hour, 3, true},
		{-26 * time.Hour, -25 * time.Hour, 3, false},
		{time.Hour, 2 * time.Hour, 3, false},
		{-2 * time.Hour, -time.Hour, 0, false},
		{-2 * time.Hour, -time.Hour, -3, false},
	} {
		n := note{At: now.Add(c.at), Until: now.Add(c.until), Times: c.times}
		if n.recent(now) != c.want {
			t.Errorf("%v: want %t", n, c.want)
		}
	}
}
