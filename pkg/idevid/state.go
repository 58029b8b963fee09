package idevid

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// stateStep guards against clones: what is on the disk was made with this TPM.
// A disk that was moved to another board, or an image that was taken from a
// device in use, brings keys that this TPM cannot load and certificates of
// somebody else. The record of the EK tells, which is written before any key.
type stateStep struct{ *Program }

func (stateStep) Name() string { return "state" }

func (s stateStep) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{Object: s.cfg.Path(s.cfg.Run.State)}
	if s.ek == nil {
		return step.WaitsFor(obs.Object, ekKey{}.Name()), nil
	}
	record, err := identity.ReadEK(s.files)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		obs.State, obs.Detail, obs.Warnings = step.Present, "new", s.aside
		return obs, nil
	case err != nil:
		return obs, err
	case bytes.Equal(record.Public, s.ek.PublicArea()):
		obs.State, obs.Detail = step.Present, "this TPM's"
		return obs, nil
	}
	// The vendor's certificate may have come or gone, and so decide for the
	// other one of this TPM's endorsement keys.
	if handle := tpm2.TPMHandle(record.Handle); handle != s.ek.Handle {
		if other, err := s.tpm.ReadPublic(handle); err == nil && bytes.Equal(record.Public, other.PublicArea()) {
			obs.State, obs.Detail = step.Present, "this TPM's, by its other endorsement key"
			return obs, nil
		}
	}
	if s.cfg.Run.OnForeignState == config.ForeignDiscard {
		obs.State, obs.Detail = step.Orphan, "made with another TPM; to be set aside"
		return obs, nil
	}
	obs.State, obs.Reason = step.Conflict, step.OtherTPM
	obs.Detail = fmt.Sprintf("it was made with another TPM: its endorsement key is %s, this one's %s", foreignName(record), shortName(s.ek.Name))
	obs.Hint = fmt.Sprintf("put the disk back into its board, or move what is in %s away, or set [run] on_foreign_state = \"discard\" to have that done", obs.Object)
	return obs, nil
}

// Act sets the state aside, once it is proven that this is another TPM, and not
// a word on the bus.
func (s stateStep) Act(context.Context, step.Observation) error {
	if err := s.prove(); err != nil {
		return err
	}
	record, err := identity.ReadEK(s.files)
	if err != nil {
		return err
	}
	aside, err := identity.SetAside(s.cfg, foreignName(record))
	for _, c := range aside {
		// What a CA wants to know of a certificate that it shall revoke.
		s.aside = append(s.aside, fmt.Sprintf("set aside: the certificate of %q, by %q, serial number %x; if the other board is out of use, have it revoked",
			c.Subject, c.Issuer, c.SerialNumber))
	}
	return err
}

// foreignName names what was set aside by the TPM that made it: a digest of its
// EK, as short as a person can compare.
func foreignName(record *identity.EK) string {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](record.Public)
	if err != nil {
		return "unknown"
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return "unknown"
	}
	return shortName(name.Buffer)
}

// shortName is the beginning of the digest in a key's name, which is that of {ek} in
// the names of devices.
func shortName(name []byte) string {
	if len(name) < 8 {
		return "unknown"
	}
	return hex.EncodeToString(name[2:8])
}
