package idevid

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/reset"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// The manufacturer's identity, taken away again: the index first, because it is
// the part that may not be possible, then the key, then what is on the disk.
// Each step is present when its object is gone. The EK stays, which is the
// vendor's; so does the ban of TPM2_Clear.

// Removal are the steps, as far as they can be done in this boot: where the
// platform hierarchy is closed, all of them wait for the next.
func (p *Program) Removal() []reset.Step {
	return []reset.Step{removeIndex{p, false}, removeKey{p}, removeFiles{p}}
}

// Made says whether the certificate is in an index of this program's making,
// which is what a reset removes; one that was adopted stays.
func (p *Program) Made() (bool, error) {
	index, err := p.tpm.Index(tpm.IndexIDevID)
	if err != nil {
		return false, err
	}
	return made(index), nil
}

// finish are the steps before all others, where a reset has left them to this
// boot.
func (p *Program) finish() []step.Step {
	state := store.Open(p.cfg.Path(p.cfg.Run.State), 0o755)
	note, err := reset.Read(state)
	if err != nil || note == nil || !note.AtBoot {
		state.Close()
		return nil // who runs the steps has looked at the note
	}
	return []step.Step{finishing{removeIndex{p, true}}, finishing{removeKey{p}}, finishing{removeFiles{p}}, finishing{removeNote{state, note}}}
}

// finishing is a step of a reset as one of the program.
type finishing struct{ reset.Step }

func (s finishing) Act(ctx context.Context, _ step.Observation) error { return s.Remove(ctx) }

type removeIndex struct {
	*Program
	now bool // it is the boot that was waited for
}

func (removeIndex) Name() string { return "remove-certificate" }

func (s removeIndex) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{State: step.Present, Object: fmt.Sprintf("NV %#x", uint32(tpm.IndexIDevID)), Detail: "nothing is there"}
	index, err := s.tpm.Index(tpm.IndexIDevID)
	s.content = nil
	if errors.Is(err, tpm.ErrNotFound) {
		return obs, nil
	}
	if err != nil {
		return obs, err
	}
	if !made(index) {
		obs.Detail = "somebody else's"
		obs.Warnings = []string{"kept: the certificate in " + obs.Object + " and its key, which were not made here"}
		return obs, nil
	}
	c := &content{index: index}
	obs.State, obs.Detail = step.Partial, "the IDevID certificate, for good"
	if c.hierarchy() == tpm2.TPMRHPlatform && s.cfg.TPM.PlatformAuth == "" {
		open, err := s.tpm.PlatformOpen(index)
		if err != nil {
			return obs, err
		}
		switch {
		case open:
		case !s.now:
			obs.Waiting = "the platform hierarchy is closed: the next boot's tpm2cloud-idevid removes the IDevID, certificate and key, before it closes it again"
		default:
			return obs, s.closed()
		}
	}
	s.content = c
	return obs, nil
}

// closed is why the boot that was waited for does not do: the TPM was not reset
// since, as at a boot that is warm on some boards, or it was, and the firmware
// has closed the hierarchy before us.
func (p *Program) closed() error {
	state := store.Open(p.cfg.Path(p.cfg.Run.State), 0o755)
	defer state.Close()
	note, err := reset.Read(state)
	if err != nil {
		return err
	}
	resets, err := p.tpm.Resets()
	if err != nil {
		return err
	}
	if note != nil && note.Resets == resets {
		return step.As(step.Refused, "boot again, with the power off in between: the hierarchy is open then, until tpm2cloud-idevid closes it",
			errors.New("cannot remove the IDevID yet: the platform hierarchy is closed, and the TPM was not reset since that was asked for"))
	}
	return step.As(step.Refused, "is there a switch in the firmware's setup? tpm2cloud reset --ldevid --yes takes the request back, and the IDevID stays as it is",
		errors.New("cannot remove the IDevID: the firmware has closed the platform hierarchy"))
}

func (s removeIndex) Remove(context.Context) error {
	if err := s.saltIfKnown(); err != nil {
		return err
	}
	return s.tpm.Undefine(s.content.hierarchy(), s.content.index)
}

// saltIfKnown hides what authorises the removal from a listener on the bus.
func (p *Program) saltIfKnown() error {
	record, err := identity.ReadEK(p.files)
	if errors.Is(err, fs.ErrNotExist) || step.ClassOf(err) == step.Refused {
		return nil
	}
	if err != nil {
		return err
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](record.Public)
	if err != nil {
		return nil
	}
	return p.tpm.SaltTo(tpm2.TPMHandle(record.Handle), *public)
}

// rest is what the steps after the index wait for: as long as that is there,
// nothing of the IDevID is touched.
func (p *Program) rest(obs step.Observation) (step.Observation, bool, error) {
	index, err := p.tpm.Index(tpm.IndexIDevID)
	switch {
	case errors.Is(err, tpm.ErrNotFound):
		return obs, true, nil
	case err != nil:
		return obs, false, err
	case !made(index):
		obs.State, obs.Detail = step.Present, "kept with its certificate"
		return obs, false, nil
	}
	obs.State, obs.Waiting = step.Partial, "it goes with the certificate"
	return obs, false, nil
}

type removeKey struct{ *Program }

func (removeKey) Name() string { return "remove-key" }

func (s removeKey) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{State: step.Present, Object: fmt.Sprintf("%#x", uint32(tpm.HandleIDevID)), Detail: "nothing is there"}
	key, err := s.tpm.ReadPublic(tpm.HandleIDevID)
	if errors.Is(err, tpm.ErrNotFound) {
		return obs, nil
	}
	if err != nil {
		return obs, err
	}
	own, err := s.own(key)
	if err != nil {
		return obs, err
	}
	if !own {
		obs.Detail = "no IDevID"
		obs.Warnings = []string{"kept: the key at " + obs.Object + ", which is no IDevID of this TPM"}
		return obs, nil
	}
	obs.Detail = "the IDevID key, for good"
	obs, free, err := s.rest(obs)
	if err != nil || !free {
		return obs, err
	}
	s.key = key
	obs.State = step.Partial
	return obs, nil
}

// own says whether a key is an IDevID under an endorsement key of this TPM.
func (p *Program) own(key *tpm.Key) (bool, error) {
	for _, handle := range []tpm2.TPMHandle{tpm.HandleEKRSA, tpm.HandleEKECC} {
		ek, err := p.tpm.ReadPublic(handle)
		if errors.Is(err, tpm.ErrNotFound) {
			continue
		}
		if err != nil {
			return false, err
		}
		if identity.Algorithm(key) != "" && key.ChildOf(ek, tpm2.TPMRHEndorsement) {
			return true, nil
		}
	}
	return false, nil
}

func (s removeKey) Remove(context.Context) error {
	if err := s.saltIfKnown(); err != nil {
		return err
	}
	if err := s.tpm.Evict(s.key); err != nil {
		return err
	}
	s.key = nil
	return nil
}

// removeFiles removes the certificate, the key's blobs and the record of the EK.
type removeFiles struct{ *Program }

func (removeFiles) Name() string { return "remove-files" }

func (s removeFiles) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{State: step.Present, Object: s.files.Name(), Detail: "nothing is there"}
	if _, err := os.Lstat(s.files.Name()); errors.Is(err, fs.ErrNotExist) {
		return obs, nil
	} else if err != nil {
		return obs, err
	}
	obs.Detail = "with all that is in there"
	obs, free, err := s.rest(obs)
	if err == nil && free {
		obs.State = step.Partial
	}
	return obs, err
}

func (s removeFiles) Remove(context.Context) error { return s.files.RemoveAll() }

// removeNote ends the reset.
type removeNote struct {
	state *store.Dir
	note  *reset.Note
}

func (removeNote) Name() string { return "reset" }

func (s removeNote) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{State: step.Present, Object: s.state.Path(reset.File), Detail: "done; what follows is a new identity"}
	if s.state.Has(reset.File) {
		obs.State, obs.Detail = step.Partial, "asked for at "+s.note.Asked.Format("2006-01-02T15:04:05Z07:00")
	}
	return obs, nil
}

func (s removeNote) Remove(context.Context) error { return s.state.Remove(reset.File) }
