package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// A lock that cannot be had says what to do, and what of it may be tried again.
func TestHintLock(t *testing.T) {
	for _, c := range []struct {
		err   error
		class step.Class
		hint  bool
	}{
		{fs.ErrPermission, step.Permission, true},
		{syscall.EACCES, step.Permission, true},
		{syscall.EROFS, step.Temporary, true},
		{syscall.ENOSPC, step.Temporary, true},
		{errors.New("else"), step.Temporary, false},
	} {
		err := hintLock(fmt.Errorf("cannot open the lock: %w", c.err))
		if step.ClassOf(err) != c.class || (step.HintOf(err) != "") != c.hint {
			t.Errorf("%v: class %d, hint %q", err, step.ClassOf(err), step.HintOf(err))
		}
	}
	if err := hintLock(nil); err != nil {
		t.Error(err)
	}
}
