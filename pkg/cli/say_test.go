package cli

import (
	"errors"
	"fmt"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/systemd"
)

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
