package ldevid

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// srk sees to the storage root key. One that is there is adopted, because
// others may rely on it (systemd keeps one there); it is never removed.
type srk struct{ *Program }

func (srk) Name() string { return "srk" }

func (s srk) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{Object: fmt.Sprintf("%#x", uint32(tpm.HandleSRK))}
	key, err := s.tpm.ReadPublic(tpm.HandleSRK)
	if errors.Is(err, tpm.ErrNotFound) {
		return obs, nil
	}
	if err != nil {
		return obs, err
	}
	attributes := key.Public.ObjectAttributes
	if !tpm.StorageKey(key.Public) || !attributes.UserWithAuth {
		obs.State, obs.Detail = step.Conflict, "the key there is no storage key that others can be made under"
		obs.Hint = fmt.Sprintf("if nothing needs that key, remove it: tpm2_evictcontrol -C o -c %#x", uint32(tpm.HandleSRK))
		return obs, nil
	}
	s.srk = key
	obs.State, obs.Detail = step.Present, "storage root key"
	if !key.Matches(tpm.SRKTemplate) {
		obs.Detail = "storage root key, adopted"
	}
	if !attributes.NoDA {
		obs.Warnings = append(obs.Warnings, "the storage root key is subject to the TPM's lockout: a few power cuts or wrong PINs block the LDevID for a while")
	}
	return obs, nil
}

func (s srk) Act(context.Context, step.Observation) (err error) {
	if err := s.prepare(); err != nil {
		return err
	}
	loaded, err := s.tpm.CreatePrimary(tpm2.TPMRHOwner, tpm.SRKTemplate)
	if err != nil {
		err = fmt.Errorf("cannot make the storage root key: %w", err)
		if errors.Is(err, tpm.ErrLacking) {
			err = step.Hint(err, "it is on P-256; one of another kind that somebody puts at %#x is adopted: tpm2_createprimary, tpm2_evictcontrol", uint32(tpm.HandleSRK))
		}
		return err
	}
	defer func() { err = errors.Join(err, loaded.Flush()) }()
	if err := s.noteSRK(loaded.Name); err != nil {
		return err
	}
	return s.tpm.Persist(loaded, tpm.HandleSRK)
}
