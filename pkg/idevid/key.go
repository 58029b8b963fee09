package idevid

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// idevidKey makes the IDevID key under the EK, in the endorsement hierarchy.
// Its authorisation value is empty: the right to open the TPM's device is the
// right to be this device.
//
// Nobody can get the private blob back out of the TPM, so it is on disk before
// the key is persistent: a key that somebody evicted is loaded again.
type idevidKey struct{ *Program }

func (idevidKey) Name() string { return "idevid-key" }

func (s idevidKey) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{Object: fmt.Sprintf("%#x", uint32(tpm.HandleIDevID))}
	if s.ek == nil {
		return step.WaitsFor(obs.Object, ekKey{}.Name()), nil
	}
	key, err := s.tpm.ReadPublic(tpm.HandleIDevID)
	if errors.Is(err, tpm.ErrNotFound) && s.files.Has(identity.FileKey) {
		obs.State, obs.Detail = step.Partial, "the key is kept on disk but not in the TPM"
		return obs, nil
	}
	if errors.Is(err, tpm.ErrNotFound) {
		return s.observeLost(obs)
	}
	if err != nil {
		return obs, err
	}
	algorithm := identity.Algorithm(key)
	if algorithm == "" || !key.ChildOf(s.ek, tpm2.TPMRHEndorsement) {
		obs.State, obs.Detail = step.Conflict, "the key there is no IDevID under this TPM's EK"
		obs.Hint = fmt.Sprintf("if nothing needs that key, remove it: tpm2_evictcontrol -C o -c %#x", uint32(tpm.HandleIDevID))
		return obs, nil
	}
	if err := s.confirm(key); err != nil {
		return obs, err
	}
	s.key = key
	obs.State, obs.Detail = step.Present, string(algorithm)
	if algorithm != s.cfg.IDevID.Key {
		obs.Warnings = append(obs.Warnings, fmt.Sprintf("the IDevID was made as %s and stays so; the configuration says %s", algorithm, s.cfg.IDevID.Key))
	}
	return obs, nil
}

// confirm makes sure that the key is in this TPM, and no word on the bus, before
// a certificate is asked for it: it is the one of the kept blob, which the EK has
// vouched for when it was made, or the EK vouches for it now.
func (s idevidKey) confirm(key *tpm.Key) error {
	if blob, err := s.kept(); err == nil && blob.Of(key) {
		return nil
	}
	if !s.proven {
		return nil // a status, of a TPM that is not known yet
	}
	return s.tpm.Confirm(key)
}

// observeLost tells a TPM that never had an IDevID from one whose key is lost:
// its certificate is locked in NV, and a new key would be no help to anybody.
func (s idevidKey) observeLost(obs step.Observation) (step.Observation, error) {
	if !slices.Contains(s.vendor.indices, tpm.IndexIDevID) {
		return obs, nil
	}
	index, err := s.tpm.Index(tpm.IndexIDevID)
	if err != nil {
		return obs, err
	}
	if made(index) && locked(index) {
		obs.State = step.Conflict
		obs.Detail = fmt.Sprintf("the key is gone, and its certificate is locked in NV %#x", uint32(tpm.IndexIDevID))
		obs.Hint = fmt.Sprintf("restore %s from a backup; if the TPM was cleared, the key is lost for good", s.files.Path(identity.FileKey))
	}
	return obs, nil
}

func (s idevidKey) Act(_ context.Context, obs step.Observation) (err error) {
	if err := s.prepare(); err != nil {
		return err
	}
	parent := tpm.Parent{Key: s.ek, Endorsement: true}
	var loaded *tpm.Loaded
	if obs.State == step.Partial {
		loaded, err = s.load(parent)
	} else {
		loaded, err = s.create(parent)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, loaded.Flush()) }()
	return s.tpm.Persist(loaded, tpm.HandleIDevID)
}

func (p *Program) create(parent tpm.Parent) (*tpm.Loaded, error) {
	loaded, blob, err := p.tpm.CreateChild(parent, identity.Template(p.cfg.IDevID.Key), tpm.Sensitive{})
	if err != nil {
		return nil, fmt.Errorf("cannot make the IDevID key: %w", err)
	}
	data, err := json.Marshal(blob)
	if err == nil {
		err = p.files.Write(identity.FileKey, append(data, '\n'), identity.ModePrivate)
	}
	if err != nil {
		return nil, errors.Join(err, loaded.Flush())
	}
	return loaded, nil
}

// kept reads the blobs that create has written.
func (p *Program) kept() (blob tpm.Blob, err error) {
	data, err := p.files.Read(identity.FileKey)
	if err != nil {
		return blob, err
	}
	if err := json.Unmarshal(data, &blob); err != nil {
		return blob, step.As(step.Refused, "move the file away; if the IDevID certificate is in the TPM already, its key is lost with it",
			fmt.Errorf("cannot read the kept IDevID key %s: %w", p.files.Path(identity.FileKey), err))
	}
	return blob, nil
}

func (p *Program) load(parent tpm.Parent) (*tpm.Loaded, error) {
	blob, err := p.kept()
	if err != nil {
		return nil, err
	}
	path := p.files.Path(identity.FileKey)
	loaded, err := p.tpm.Load(parent, blob)
	if errors.Is(err, tpm2.TPMRCIntegrity) {
		return nil, step.Because(step.OtherTPM, step.As(step.Refused,
			fmt.Sprintf("%s is another TPM's, or this TPM has been cleared and the IDevID is lost; move %s away to make a new one", path, p.files.Name()),
			fmt.Errorf("cannot load the kept IDevID key %s: %w", path, err)))
	}
	return loaded, err
}
