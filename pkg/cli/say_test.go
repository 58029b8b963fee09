package cli

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/systemd"
)

// What others wrote is one line, of bounded length, and commands no terminal.
func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"gerät 1":                   "gerät 1",
		"CN=\x1b[2J\nerror: \u202e": "CN= [2J error:  ",
		"a\xff":                     "a\ufffd",
		strings.Repeat("é", 2000):   strings.Repeat("é", 998) + "…",
	} {
		if got := plain(in); got != want || len(got) > maxLine {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// The journal's catalog is looked up by what ended the run: a reason first,
// then the class, however deep in the chain.
func TestEventOf(t *testing.T) {
	why := errors.New("why")
	for _, c := range []struct {
		err  error
		want systemd.Event
	}{
		{why, systemd.GaveUp},
		{step.As(step.Temporary, "", why), systemd.GaveUp},
		{step.As(step.ServerRefused, "", why), systemd.ServerRefused},
		{step.As(step.Refused, "", why), systemd.CannotGoOn},
		{step.As(step.Configuration, "", why), systemd.CannotGoOn},
		{step.As(step.Unavailable, "", why), systemd.CannotGoOn},
		{step.Because(step.NoTPM, step.As(step.Unavailable, "", why)), systemd.NoTPM},
		{step.Because(step.OtherTPM, why), systemd.OtherTPM},
		{&step.Failure{Step: "ek-certificate", Err: step.Hint(fmt.Errorf("cannot: %w",
			step.Because(step.NotGenuine, step.As(step.Refused, "", why))), "look")}, systemd.NotGenuine},
	} {
		if got := eventOf(c.err); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
}
