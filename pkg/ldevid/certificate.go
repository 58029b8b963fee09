package ldevid

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/token"
)

// ldevidCertificate gets the certificate from the owner's CA. The request is
// signed through PKCS#11, as the agent will sign: the signature that the CA
// checks is the proof that the link works.
type ldevidCertificate struct{ *Program }

func (ldevidCertificate) Name() string { return "ldevid-certificate" }

func (s ldevidCertificate) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{Object: s.files.Path(identity.FileCertificate)}
	if s.key == nil {
		return step.WaitsFor(obs.Object, ldevidKey{}.Name()), nil
	}
	s.enrolled = false
	chain, err := identity.ReadChain(s.files)
	if errors.Is(err, fs.ErrNotExist) {
		obs.Detail = identity.NotYet(s.files)
		return obs, nil
	}
	if err != nil {
		// What can't be read is got again: the CA has it, or makes another.
		obs.State, obs.Detail = step.Partial, err.Error()
		return obs, nil
	}
	subject, err := s.subject()
	if err != nil {
		return obs, err
	}
	public, err := s.key.PublicKey()
	if err != nil {
		return obs, err
	}
	obs.Certificate = identity.Describe(chain.Leaf)
	roots, err := identity.ReadCA(s.files)
	if err != nil {
		obs.State, obs.Detail = step.Partial, err.Error()
		return obs, nil
	}
	checked, err := identity.Check(chain, devid.Expect{
		Key: public, Subject: subject, AnySubject: s.cfg.LDevID.Enroll.AnySubject,
		ClientAuth: true, Roots: roots, At: s.clock().Time,
	})
	switch {
	case err == nil:
		obs.State, obs.Detail, obs.Warnings = step.Present, "verified", checked.Warnings
	case identity.Undecided(err, s.clock()):
		obs.State, obs.Detail = step.Present, "clock unverified"
		obs.Warnings = []string{err.Error()}
	default:
		// Another key or another name in the configuration, or its end: what
		// it was good for is over.
		obs.State, obs.Detail = step.Partial, err.Error()
	}
	s.enrolled = obs.State == step.Present
	if s.enrolled && s.files.Has(identity.FileRequest) {
		obs.State, obs.Detail = step.Partial, "the request that was answered is still kept"
	}
	return obs, nil
}

// subject is the name that the LDevID certificate must carry.
func (p *Program) subject() (pkix.Name, error) {
	c := p.cfg.LDevID
	return identity.Names{CommonName: c.CommonName, SerialNumber: c.SerialNumber, Organization: c.Organization, Lower: true}.Subject(p.device, p.ekName)
}

func (s ldevidCertificate) Act(ctx context.Context, _ step.Observation) error {
	if s.enrolled {
		return s.files.Remove(identity.FileRequest)
	}
	public, err := s.key.PublicKey()
	if err != nil {
		return err
	}
	if next, err := s.next(public); err != nil || next != nil {
		return errors.Join(err, s.takeOver(next))
	}
	if s.order, err = s.newOrder(public); err != nil {
		return err
	}
	s.order.Sign = func() ([]byte, error) { return s.request(s.order.Subject) }
	if s.expired(public) && !identity.HasSecret(s.cfg, s.cfg.LDevID.Enroll) {
		// The password was for the first day. The manufacturer's identity is for ever.
		s.order.Enroll.Method = config.MethodMTLS
	}
	if s.order.Enroll.Method == config.MethodMTLS {
		if s.order.Identity, err = s.tlsIdentity(); err != nil {
			return err
		}
	}
	_, err = identity.Enrol(ctx, s.order)
	return err
}

// Postpone keeps when the CA is to be asked again.
func (s ldevidCertificate) Postpone(until time.Time, failures int) error {
	return s.order.Postpone(until, failures)
}

// newOrder is that of a certificate for a key, without what signs and proves it.
func (p *Program) newOrder(public crypto.PublicKey) (identity.Order, error) {
	subject, err := p.subject()
	return identity.Order{
		Config: p.cfg, Enroll: p.cfg.LDevID.Enroll, Section: "ldevid.enroll",
		Files: p.files, Clock: p.clock,
		Key: public, Subject: subject, ClientAuth: true,
	}, err
}

// expired says whether there was a certificate for the key, which has ended.
func (p *Program) expired(public crypto.PublicKey) bool {
	chain, err := identity.ReadChain(p.files)
	return err == nil && devid.SameKey(chain.Leaf.PublicKey, public) && p.clock().Time.After(chain.Leaf.NotAfter)
}

// tlsIdentity is the IDevID as a TLS client.
func (p *Program) tlsIdentity() (*tls.Certificate, error) {
	signer, err := p.tpm.Signer(p.idevidKey)
	if err != nil {
		return nil, err
	}
	return identity.TLS(p.idevidChain, signer), nil
}

// request signs the CSR through the token.
func (p *Program) request(subject pkix.Name) (csr []byte, err error) {
	pin, err := p.pins.Read(fileUserPIN)
	if err != nil {
		return nil, err
	}
	err = p.library(func(m *token.Module) error {
		signer, err := m.Signer(p.cfg.LDevID.Token.Label, string(pin), p.cfg.LDevID.Token.Key, p.pair.ID)
		if err != nil {
			return err
		}
		csr, err = devid.CSR(signer, subject)
		return errors.Join(err, signer.Close())
	})
	if err != nil {
		return nil, fmt.Errorf("cannot sign the request through PKCS#11: %w", err)
	}
	return csr, nil
}
