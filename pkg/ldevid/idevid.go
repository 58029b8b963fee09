package ldevid

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// idevid checks the manufacturer's identity before an owner's is built on it:
// the certificate in NV leads to the manufacturer's CA and carries the name
// that is expected, and the key at 0x81020000 signs for it. It can only look:
// what is missing is tpm2cloud-idevid's to make.
type idevid struct{ *Program }

func (idevid) Name() string { return "idevid" }

func (s idevid) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{Object: fmt.Sprintf("NV %#x", uint32(tpm.IndexIDevID))}
	chain, err := identity.ReadIDevID(s.tpm, s.idevid)
	if err != nil {
		return obs, err
	}
	s.idevidChain, obs.Certificate = chain, identity.Describe(chain.Leaf)
	if s.idevidKey, err = identity.ProveIDevID(s.tpm, chain.Leaf); err != nil {
		return obs, err
	}
	if err := s.salt(); err != nil {
		return obs, err
	}
	roots, err := identity.IDevIDCA(s.cfg, s.cfg.LDevID.IDevIDCA, s.idevid)
	if err != nil {
		return obs, err
	}
	pattern := s.cfg.LDevID.IDevIDCommonName
	if pattern == "" {
		pattern = s.cfg.IDevID.CommonName
	}
	name, err := s.device.Expand(pattern, s.ekName)
	if err != nil {
		return obs, err
	}
	if obs.Warnings, err = identity.JudgeIDevID(chain, roots, name, s.clock()); err != nil {
		return obs, err
	}
	obs.State, obs.Detail = step.Present, "verified, and the TPM holds its key"
	if !s.ek.Verified {
		obs.Warnings = append(obs.Warnings, "bus unverified: no verified EK certificate")
	}
	return obs, nil
}

func (idevid) Act(context.Context, step.Observation) error {
	return step.Fail(step.Software, "the IDevID is not this program's to make")
}

// salt hides what crosses the TPM's bus from everybody but the EK that
// tpm2cloud-idevid has judged.
func (p *Program) salt() error {
	record, err := identity.ReadEK(p.idevid)
	if errors.Is(err, fs.ErrNotExist) {
		return step.As(step.Refused, "run tpm2cloud-idevid: it judges the EK at every boot", fmt.Errorf("cannot find out which EK to trust: %w", err))
	}
	if err != nil {
		return err
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](record.Public)
	if err != nil {
		return step.Fail(step.Refused, "cannot use %s: %w", p.idevid.Path(identity.FileEK), err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return err
	}
	p.ek, p.ekName = *record, name.Buffer
	return p.tpm.SaltTo(tpm2.TPMHandle(record.Handle), *public)
}
