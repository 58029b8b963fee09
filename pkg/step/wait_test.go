package step

import (
	"testing"
	"time"
)

// The windows that the waits are drawn from, one failure after the other.
func TestWindows(t *testing.T) {
	const s, m, h = time.Second, time.Minute, time.Hour
	times := func(n int, setback Setback) []Setback {
		list := make([]Setback, n)
		for i := range list {
			list[i] = setback
		}
		return list
	}
	said := func(after time.Duration) Setback { return Setback{Busy: true, After: after} }
	for name, test := range map[string]struct {
		setbacks []Setback
		want     []time.Duration // behind what was said
	}{
		"no answer":         {times(9, Setback{}), []time.Duration{2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s, 2 * m, 2 * m, 2 * m}},
		"busy":              {times(8, said(0)), []time.Duration{2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s, 128 * s, 256 * s}},
		"busy for days":     {[]Setback{{Busy: true, Failures: 1 << 40}}, []time.Duration{h}},
		"a second":          {times(1, said(s)), []time.Duration{2 * s}},
		"half a minute":     {times(6, said(30*s)), []time.Duration{30 * s, 30 * s, 30 * s, 45 * s, 67500 * time.Millisecond, 101250 * time.Millisecond}},
		"two minutes":       {times(1, said(2*m)), []time.Duration{30 * s}},
		"an hour":           {times(5, said(h)), []time.Duration{h / 8, h / 8, h / 8, h * 3 / 16, h * 9 / 32}},
		"an hour for days":  {[]Setback{{Busy: true, After: h, Failures: 1 << 40}}, []time.Duration{h}},
		"a day":             {times(5, said(24*h)), []time.Duration{3 * h, 3 * h, 3 * h, 3 * h, 3 * h}},
		"the past":          {times(2, said(-h)), []time.Duration{2 * s, 4 * s}},
		"from earlier runs": {[]Setback{{Busy: true, After: 30 * s, Failures: 3}}, []time.Duration{45 * s}},
		// That a network comes and goes says nothing of the CA behind it.
		"by turns": {[]Setback{{}, said(0), {}, said(0), {}}, []time.Duration{2 * s, 2 * s, 4 * s, 4 * s, 8 * s}},
		"drawn":    {[]Setback{{Busy: true, Drawn: true, After: m, Failures: 5}, said(30 * s)}, []time.Duration{0, 30 * s}},
	} {
		t.Run(name, func(t *testing.T) {
			waits := Waits{Draw: func(limit time.Duration) time.Duration { return limit }}
			for i, setback := range test.setbacks {
				want := max(setback.After, 0) + test.want[i]
				if got, inTime := waits.Next(setback, want); got != want || !inTime {
					t.Errorf("after failure %d: %s, in time %t, want %s", i+1, got, inTime, want)
				}
			}
		})
	}
}

// In time is what ends within what is left.
func TestWaitsLeft(t *testing.T) {
	waits := Waits{Draw: func(time.Duration) time.Duration { return time.Second }}
	for left, want := range map[time.Duration]bool{-time.Hour: false, 0: false, time.Second - 1: false, time.Second: true} {
		if wait, inTime := waits.Next(Setback{}, left); wait != time.Second || inTime != want {
			t.Errorf("%s left: %s, in time %t", left, wait, inTime)
		}
	}
}

// Full jitter: a wait is anywhere in its window, and nowhere else. Of 10,000
// draws each eighth has 1250; the bounds are eight deviations away.
func TestDraw(t *testing.T) {
	var eighths [8]int
	for range 10000 {
		wait, _ := new(Waits).Next(Setback{Busy: true, After: 16 * time.Second}, 0)
		jitter := wait - 16*time.Second
		if jitter < 0 || jitter > 16*time.Second {
			t.Fatalf("%s behind the time", jitter)
		}
		eighths[min(jitter/(2*time.Second), 7)]++
	}
	for i, n := range eighths {
		if n < 1000 || n > 1500 {
			t.Errorf("%d of 10000 waits are in eighth %d of the window", n, i+1)
		}
	}
}
