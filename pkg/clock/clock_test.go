package clock

import (
	"runtime/debug"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

func TestJudge(t *testing.T) {
	day := func(s string) time.Time {
		if s == "" {
			return time.Time{}
		}
		d, err := time.Parse(time.DateOnly, s)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	const unsynchronised = "the kernel does not call the clock synchronised"
	for _, tt := range []struct {
		name         string
		now          string
		synchronised bool
		built        string
		floors       []string
		time, why    string
		ahead        bool
	}{
		{"synchronised", "2027-01-01", true, "2026-06-01", nil, "2027-01-01", "", false},
		{"not synchronised", "2027-01-01", false, "2026-06-01", nil, "2027-01-01", unsynchronised, false},
		{"no battery", "1970-01-01", false, "2026-06-01", nil, "2026-06-01",
			"the clock stands at 1970-01-01T00:00:00Z, before this program was built (2026-06-01T00:00:00Z)", false},
		{"synchronised with a liar", "2000-01-01", true, "2026-06-01", nil, "2026-06-01",
			"the clock stands at 2000-01-01T00:00:00Z, before this program was built (2026-06-01T00:00:00Z)", false},
		{"newest floor", "1970-01-01", false, "2026-06-01", []string{"2026-08-01", "2026-09-01", "2026-07-01"}, "2026-09-01",
			"the clock stands at 1970-01-01T00:00:00Z, before a CA certificate of the configuration became valid (2026-09-01T00:00:00Z)", false},
		{"floors passed", "2027-01-01", true, "2026-06-01", []string{"2020-01-01", "2026-12-31"}, "2027-01-01", "", false},
		{"unknown build", "1970-01-01", false, "", nil, "1970-01-01", unsynchronised, false},
		{"unknown build, ahead", "2099-01-01", false, "", nil, "2099-01-01", unsynchronised, false},
		{"2038", "2038-01-19", false, "2026-06-01", nil, "2038-01-19", "the clock stands at 2038-01-19T00:00:00Z, which nobody vouches for", true},
		{"2099", "2099-01-01", false, "2026-06-01", nil, "2099-01-01", "the clock stands at 2099-01-01T00:00:00Z, which nobody vouches for", true},
		{"the build's date", "2026-06-01", false, "2026-06-01", nil, "2026-06-01", unsynchronised, false},
		{"an old build, synchronised", "2099-01-01", true, "2026-06-01", nil, "2099-01-01", "", false},
		{"a CA of the future is not the clock's fault", "1970-01-01", false, "2026-06-01", []string{"2099-01-01"}, "2099-01-01",
			"the clock stands at 1970-01-01T00:00:00Z, before a CA certificate of the configuration became valid (2099-01-01T00:00:00Z)", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var floors []time.Time
			for _, f := range tt.floors {
				floors = append(floors, day(f))
			}
			c := Judge(day(tt.now), tt.synchronised, day(tt.built), floors...)
			if !c.Time.Equal(day(tt.time)) || c.Why != tt.why || c.Verified != (tt.why == "") {
				t.Errorf("%+v", c)
			}
			err := c.Err()
			if (err != nil) != tt.ahead {
				t.Errorf("Err = %v", err)
			}
			if err != nil && (step.ClassOf(err) != step.Temporary || step.HintOf(err) == "") {
				t.Errorf("class %d, hint %q", step.ClassOf(err), step.HintOf(err))
			}
		})
	}
}

func TestCommitted(t *testing.T) {
	at := func(value string) *debug.BuildInfo {
		return &debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.time", Value: value}}}
	}
	if got := committed(at("2026-06-01T12:00:00Z")); got.Unix() != 1780315200 {
		t.Error(got)
	}
	for _, info := range []*debug.BuildInfo{nil, {}, at("yesterday")} {
		if got := committed(info); !got.IsZero() {
			t.Error(got)
		}
	}
}

// The kernel of whoever runs this may or may not be synchronised: a clock comes
// of it in any case, and it is not before the floor.
func TestRead(t *testing.T) {
	floor := time.Date(2500, 1, 1, 0, 0, 0, 0, time.UTC)
	if c := Read(floor); c.Verified || !c.Time.Equal(floor) {
		t.Errorf("%+v", c)
	}
	if c := Read(); c.Time.IsZero() || c.Verified != (c.Why == "") {
		t.Errorf("%+v", c)
	}
}
