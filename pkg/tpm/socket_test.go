package tpm

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
)

// Whoever keeps a connection to a software TPM open keeps everybody else out.
// We give up after a while, say so, and go on when the TPM is free again.
func TestSocketIsKeptByAnother(t *testing.T) {
	t.Parallel()
	s := tpmkit.Start(t)
	other, err := net.Dial("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	device, err := openSocket(s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	device.patience = 200 * time.Millisecond
	tpm := New(device, Secrets{})
	begun := time.Now()
	_, err = tpm.ReadPublic(HandleSRK)
	if err == nil || step.ClassOf(err) != step.Temporary || !strings.Contains(err.Error(), s.Socket+" does not answer within 200ms") || step.HintOf(err) == "" {
		t.Errorf("the TPM is kept by another: %v; hint: %s", err, step.HintOf(err))
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it waited for %s", took)
	}
	other.Close()
	device.patience = patience
	if _, err := tpm.ReadPublic(HandleSRK); !errors.Is(err, ErrNotFound) {
		t.Errorf("the TPM is free again: %v", err)
	}
}
