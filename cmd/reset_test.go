package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/device"
	"github.com/tpm2cloud/tpm2cloud/pkg/edgecfg"
	"github.com/tpm2cloud/tpm2cloud/pkg/idevid"
	"github.com/tpm2cloud/tpm2cloud/pkg/ldevid"
	"github.com/tpm2cloud/tpm2cloud/pkg/reset"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/fault"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// edge is the agent's configuration, for the board's own.
func (b *board) edge(t *testing.T) *edgecfg.Program {
	t.Helper()
	b.cfg.Edge.Method, b.cfg.Edge.IDScope = config.EdgeDPS, "0ne00AAAAAA"
	p, err := edgecfg.New(b.cfg, edgecfg.Options{Clock: func(...time.Time) clock.Clock { return verified() }})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// spoiled is a step that is cut at its move.
type spoiled struct {
	reset.Step
	moved bool // the move was made before the cut
}

func (s spoiled) Remove(ctx context.Context) error {
	if s.moved {
		if err := s.Step.Remove(ctx); err != nil {
			return err
		}
	}
	return fault.ErrCut
}

// reset is one run of a reset, which a cut may end: at a command of the TPM, or
// at the move of the step whose name is given.
func (b *board) reset(t *testing.T, scope reset.Scope, cutter *fault.Cutter, at string, moved bool) error {
	t.Helper()
	cutter.TPM = b.tpm.Open(t)
	opened := tpm.New(cutter, tpm.Secrets{})
	board := device.New(b.root, b.cfg.Device)
	steps := append(b.edge(t).Removal(), ldevid.New(b.cfg, opened, board, verified).Removal()...)
	if scope == reset.All {
		steps = append(steps, idevid.New(b.cfg, opened, board, verified).Removal()...)
	}
	for i, s := range steps {
		if s.Name() == at {
			steps[i] = spoiled{s, moved}
		}
	}
	state := store.Open(filepath.Join(b.root, "var/lib/tpm2cloud"), 0o755)
	defer state.Close()
	earlier, err := reset.Read(state)
	if err != nil {
		t.Fatal(err)
	}
	revoke := []reset.Certificate{}
	if earlier == nil {
		revoke = []reset.Certificate{{What: "LDevID", Serial: "1"}}
	}
	atBoot, err := reset.Run(context.Background(), state, reset.New(scope, revoke, nil, 0, earlier), steps, func(step.Row, bool) {})
	if atBoot {
		t.Error("the platform is open, and the reset waits for a boot")
	}
	return err
}

// resetDone demands that nothing of the identity is left, and all of the rest.
func (b *board) resetDone(t *testing.T, scope reset.Scope) {
	t.Helper()
	keys, indices := []tpm2.TPMHandle{tpm.HandleEKRSA, tpm.HandleIDevID}, []tpm2.TPMHandle{tpm.IndexIDevID}
	files := []string{"var/lib/tpm2cloud/idevid/certificate.pem", "var/lib/tpm2cloud/idevid/key.json"}
	if scope == reset.All {
		keys, indices, files = keys[:1], nil, nil
	}
	opened := tpm.New(b.tpm.Open(t), tpm.Secrets{})
	for _, handle := range []tpm2.TPMHandle{tpm.HandleEKRSA, tpm.HandleIDevID, tpm.HandleSRK, tpm.HandleLDevID} {
		if _, err := opened.ReadPublic(handle); errors.Is(err, tpm.ErrNotFound) == slices.Contains(keys, handle) {
			t.Errorf("the key at %#x: %v", uint32(handle), err)
		}
	}
	defined, err := opened.Indices()
	if err != nil || slices.Contains(defined, tpm.IndexIDevID) != (len(indices) > 0) {
		t.Errorf("the indices are %x, %v", defined, err)
	}
	for _, name := range files {
		if _, err := os.Stat(filepath.Join(b.root, name)); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range []string{"var/lib/tpm2cloud", "etc/aziot", "etc/systemd"} {
		filepath.WalkDir(filepath.Join(b.root, dir), func(path string, d fs.DirEntry, err error) error {
			if name, _ := filepath.Rel(b.root, path); err == nil && !d.IsDir() && !strings.HasPrefix(name, "var/lib/tpm2cloud/idevid/") {
				t.Errorf("left: %s", name)
			}
			return nil
		})
	}
}

// A power cut at any TPM command of a reset, before or after any of its moves:
// as long as it is not done no program provisions, what somebody must revoke is
// known, and the next reset ends like one that nothing cut.
func TestResetCut(t *testing.T) {
	t.Parallel()
	vendor := tpmkit.NewVendor(t)
	factory := tpmkit.Start(t)
	factory.Manufacture(t, vendor)
	made := newBoard(t, factory, vendor)
	for _, p := range []program{idevidSteps, ldevidSteps} {
		if err := made.run(t, p, &fault.Cutter{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := (&step.Runner{Steps: made.edge(t).Steps(), Budget: time.Minute}).Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	factory.Cut() // and so the platform hierarchy is open
	fresh := func(t *testing.T) *board {
		b := newBoard(t, factory.Fork(t), vendor)
		for _, dir := range []string{"var/lib/tpm2cloud", "etc/aziot", "etc/systemd"} {
			if err := os.CopyFS(filepath.Join(b.root, dir), os.DirFS(filepath.Join(made.root, dir))); err != nil {
				t.Fatal(err)
			}
		}
		return b
	}
	for _, scope := range []reset.Scope{reset.Owner, reset.All} {
		whole := &fault.Cutter{}
		b := fresh(t)
		if err := b.reset(t, scope, whole, "", false); err != nil {
			t.Fatal(err)
		}
		b.resetDone(t, scope)

		resumes := func(name string, cut func(t *testing.T, b *board) error) {
			t.Run(fmt.Sprintf("%s-%s", scope, name), func(t *testing.T) {
				t.Parallel()
				b := fresh(t)
				if err := cut(t, b); !errors.Is(err, fault.ErrCut) {
					t.Fatalf("nothing was cut: %v", err)
				}
				b.tpm.Reboot(t)
				state := store.Open(filepath.Join(b.root, "var/lib/tpm2cloud"), 0o755)
				defer state.Close()
				note, err := reset.Read(state)
				if err != nil || note == nil || len(note.Revoke) != 1 || note.Revoke[0].Serial != "1" {
					t.Fatalf("the note: %+v, %v", note, err)
				}
				if err := reset.Allow(state, true); step.ClassOf(err) != step.Refused || err == nil {
					t.Errorf("a program may provision: %v", err)
				}
				if err := b.reset(t, scope, &fault.Cutter{}, "", false); err != nil {
					t.Fatalf("the reset after the cut: %v", err)
				}
				b.resetDone(t, scope)
				b.tpm.Cut()
			})
		}
		for at := 1; at <= whole.Sent; at++ {
			for when, executed := range map[string]bool{"before": false, "after": true} {
				resumes(fmt.Sprintf("%s-command-%d", when, at), func(t *testing.T, b *board) error {
					return b.reset(t, scope, &fault.Cutter{At: at, Executed: executed}, "", false)
				})
			}
		}
		names := []string{"agent-files", "ldevid-key", "token", "srk", "ldevid-files"}
		if scope == reset.All {
			names = append(names, "remove-certificate", "remove-key", "remove-files")
		}
		for _, name := range names {
			for when, moved := range map[string]bool{"before": false, "after": true} {
				resumes(when+"-"+name, func(t *testing.T, b *board) error { return b.reset(t, scope, &fault.Cutter{}, name, moved) })
			}
		}
	}
}
