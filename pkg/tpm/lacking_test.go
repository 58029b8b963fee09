package tpm

import (
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// The template is at fault by a return code of the command that has it, and not
// by the same one of a session that could not be started for it.
func TestLacking(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{tpm2.TPMRCValue + 0x240, true},
		{tpm2.TPMRCCurve + 0x240, true},
		{tpm2.TPMRCType + 0x240, true},
		{fail(tpm2.TPMRCValue+0x240, "start a session salted to %#x", uint32(HandleEKRSA)), false},
		{tpm2.TPMRCAuthFail + 0x800, false},
		{tpm2.TPMRCRetry, false},
		{errors.New("answer lost"), false},
	} {
		got := lacking(c.err)
		if errors.Is(got, ErrLacking) != c.want || !errors.Is(got, c.err) {
			t.Errorf("%v: %v", c.err, got)
		}
		if class := step.ClassOf(fail(got, "create")); c.want && class != step.Refused {
			t.Errorf("%v: class %d", c.err, class)
		}
	}
	if lacking(nil) != nil {
		t.Error("no error has become one")
	}
}
