package powercut_test

import (
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/powercut"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
)

// A command before which the power is cut reaches no TPM; the answer to one
// after which it is cut reaches nobody.
func TestBus(t *testing.T) {
	for _, c := range []struct {
		cut      powercut.Point
		answered int  // of two commands
		executed bool // the second
	}{
		{powercut.Point{}, 2, true},
		{powercut.Point{At: 2}, 1, false},
		{powercut.Point{At: 2, After: true}, 1, true},
	} {
		s := tpmkit.Start(t)
		var cuts atomic.Int32
		dir := t.TempDir()
		bus, err := powercut.NewBus(dir, s.Socket, c.cut, func() { cuts.Add(1) })
		if err != nil {
			t.Fatal(err)
		}
		device, err := linuxudstpm.Open(filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		answered := 0
		for range 2 {
			if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}).Execute(device); err == nil {
				answered++
			}
		}
		device.Close()
		bus.Close()
		if answered != c.answered || len(bus.Commands()) != 2 || bus.Commands()[0] != tpm2.TPMCCCreatePrimary {
			t.Errorf("%+v: %d answers to the commands %v", c.cut, answered, bus.Commands())
		}
		if want := c.cut.At > 0; (cuts.Load() == 1) != want {
			t.Errorf("%+v: %d cuts", c.cut, cuts.Load())
		}
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x80000000, PropertyCount: 10}.Execute(s.Open(t))
		if err != nil {
			t.Fatal(err)
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			t.Fatal(err)
		}
		if got := len(list.Handle); (got == 2) != c.executed {
			t.Errorf("%+v: the TPM has %d objects", c.cut, got)
		}
	}
}
