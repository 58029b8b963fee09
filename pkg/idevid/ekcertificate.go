package idevid

import (
	"context"
	"errors"
	"fmt"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/ek"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// ekCertificate decides whether the TPM is genuine: the certificate leads to a
// vendor that is trusted, and the TPM proves that it holds the certified key.
// From here on, secrets on the TPM's bus are hidden from everybody but this
// key.
type ekCertificate struct{ *Program }

func (ekCertificate) Name() string { return "ek-certificate" }

func (s ekCertificate) Observe(context.Context) (step.Observation, error) {
	certified, err := s.certified()
	if err != nil {
		return step.Observation{}, err
	}
	obs := step.Observation{Object: "no certificate"}
	if s.ek == nil {
		return step.WaitsFor(obs.Object, ekKey{}.Name()), s.genuine(certified)
	}
	record := identity.EK{Handle: uint32(s.ek.Handle), Public: s.ek.PublicArea()}
	var bundle []byte
	switch {
	case certified == nil:
		obs.Warnings = append(obs.Warnings, fmt.Sprintf("nothing proves that this TPM is genuine: %v", s.vendor.err))
	case s.cfg.EK.Verify == config.VerifyOff:
		obs.Object = fmt.Sprintf("%#x", certified.Slot.Certificate)
		obs.Warnings = append(obs.Warnings, "nothing proves that this TPM is genuine: [ek] verify = \"off\"")
	default:
		obs.Object = fmt.Sprintf("%#x", certified.Slot.Certificate)
		verdict, err := s.verify(certified)
		if err != nil && s.cfg.EK.Verify == config.VerifyRequire {
			return obs, err
		}
		if err != nil {
			obs.Warnings = append(obs.Warnings, fmt.Sprintf("nothing proves that this TPM is genuine: %v", err))
			break
		}
		obs.Warnings = append(obs.Warnings, verdict.Warnings...)
		obs.Certificate = identity.Describe(certified.Certificate.X509)
		record.Verified = true
		bundle = devid.EncodePEM(verdict.Chain)
	}
	if err := s.prove(); err != nil {
		return obs, err
	}
	if s.cfg.TPM.Software() {
		obs.Warnings = append(obs.Warnings, "software TPM, not for production: who can read its files has its keys")
	}
	if !record.Verified {
		obs.Warnings = append(obs.Warnings, "bus unverified: secrets are hidden from listeners on the TPM's bus, but not from a false TPM")
	}
	if certified != nil {
		obs.Detail = certified.Certificate.Names.String()
	}
	s.ekRecord, s.ekChain = record, bundle
	if record.SavedIn(s.files) && (bundle == nil || s.files.Same(identity.FileEKChain, bundle, identity.ModePublic)) {
		obs.State = step.Present
	}
	return obs, nil
}

// prove has the TPM prove, once in a run, that it holds the EK's private part,
// and salts later sessions to it. That the EK is the certified one, ek-key has
// seen to.
func (p *Program) prove() error {
	if p.proven {
		return nil
	}
	if err := p.tpm.SaltTo(p.ek.Handle, p.ek.Public); err != nil {
		return err
	}
	if err := p.tpm.Prove(); err != nil {
		return err
	}
	p.proven = true
	return nil
}

// genuine says what speaks against the certificate, where the configuration
// insists on a good one.
func (p *Program) genuine(certified *ek.Entry) error {
	if p.cfg.EK.Verify != config.VerifyRequire {
		return nil
	}
	_, err := p.verify(certified)
	return err
}

// verify judges the certificate against the vendors' roots.
func (p *Program) verify(certified *ek.Entry) (*ek.Verdict, error) {
	dirs := make([]string, len(p.cfg.EK.Trust))
	for i, dir := range p.cfg.EK.Trust {
		dirs[i] = p.cfg.Path(dir)
	}
	if p.trust == nil {
		trust, err := ek.LoadTrust(dirs...)
		if err != nil {
			return nil, step.As(step.Configuration, "[ek] trust names the directories of the vendors' CA certificates", err)
		}
		p.trust = trust
	}
	verdict, err := ek.Verify(certified.Certificate, ek.Options{
		Anchors:       p.trust.Anchors,
		Intermediates: p.vendor.found.Chain,
		At:            p.clock().Time,
		AllowExpired:  p.cfg.EK.AllowExpired,
	})
	if err == nil {
		return verdict, nil
	}
	class, hint, reason := step.Refused, "", step.NotGenuine
	var unknown *ek.UnknownIssuerError
	var early *ek.NotYetValidError
	var expired *ek.ExpiredError
	switch {
	case errors.As(err, &unknown):
		hint = fmt.Sprintf("put the vendor's CA certificates into %s", dirs[len(dirs)-1])
	case errors.As(err, &early), errors.As(err, &expired):
		if !p.clock().Verified {
			// That is no verdict on the TPM.
			class, hint, reason = step.Temporary, "the clock is not synchronised; it may be wrong", ""
		}
	}
	return nil, step.Because(reason, step.As(class, hint,
		fmt.Errorf("this TPM is not proven genuine, EK certificate in NV %#x: %w", certified.Slot.Certificate, err)))
}

func (s ekCertificate) Act(context.Context, step.Observation) error {
	if s.ekChain != nil {
		if err := s.files.Write(identity.FileEKChain, s.ekChain, identity.ModePublic); err != nil {
			return err
		}
	}
	return s.ekRecord.Save(s.files)
}
