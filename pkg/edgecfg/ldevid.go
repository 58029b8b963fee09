package edgecfg

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// ldevidStep looks whether tpm2cloud-ldevid left what is needed here: the
// certificate with its chain, and the token's user PIN. That the certificate is
// the key's is that program's promise; it is proved again at the end, when keyd
// opens the key.
type ldevidStep struct{ p *Program }

func (s *ldevidStep) Name() string { return "ldevid" }

func (s *ldevidStep) Observe(context.Context) (step.Observation, error) {
	path := s.p.certificatePath()
	obs := step.Observation{Object: path}
	id, err := s.p.readLDevID()
	if errors.Is(err, fs.ErrNotExist) {
		obs.Detail = "there is no LDevID certificate"
		return obs, nil
	}
	if err != nil {
		return obs, err
	}
	obs.Certificate = id.describe()
	if _, err := s.p.readPIN(); errors.Is(err, fs.ErrNotExist) {
		obs.State, obs.Detail = step.Partial, "the token's user PIN is missing"
		return obs, nil
	} else if err != nil {
		return obs, err
	}
	if err := s.p.judgeDates(id); err != nil {
		return obs, err
	}
	obs.State, obs.Detail = step.Present, id.leaf.Subject.CommonName
	return obs, nil
}

// Act cannot make an LDevID.
func (s *ldevidStep) Act(_ context.Context, obs step.Observation) error {
	return step.As(step.Refused, "run tpm2cloud-ldevid first",
		fmt.Errorf("cannot configure the agent with %s: %s", obs.Object, obs.Detail))
}

// ldevid is the certificate that tpm2cloud-ldevid keeps.
type ldevid struct {
	leaf  *x509.Certificate
	chain []*x509.Certificate // from the leaf's issuer upwards
}

func (p *Program) certificatePath() string { return p.state("ldevid", "certificate.pem") }

// readLDevID reads the LDevID certificate, leaf first. The chain must follow
// without a gap: DPS sees it as it is here, and looks nothing up.
func (p *Program) readLDevID() (*ldevid, error) {
	path := p.certificatePath()
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, classify(fmt.Errorf("cannot read the LDevID certificate: %w", err))
	}
	id := &ldevid{}
	if id.leaf, id.chain, err = devid.ParseChainPEM(data); err != nil {
		return nil, refuseLDevID(fmt.Errorf("cannot use the LDevID certificate %s: %w", path, err))
	}
	if id.leaf.IsCA {
		return nil, refuseLDevID(fmt.Errorf("cannot use the LDevID certificate %s: the first certificate is a CA's, and the device's must come first", path))
	}
	child := id.leaf
	for _, issuer := range id.chain {
		if err := child.CheckSignatureFrom(issuer); err != nil {
			return nil, refuseLDevID(fmt.Errorf("cannot use the LDevID certificate %s: %q is not followed by its issuer: %w", path, child.Subject, err))
		}
		child = issuer
	}
	return id, nil
}

func refuseLDevID(err error) error {
	return step.As(step.Refused, "run tpm2cloud-ldevid: it puts the certificate right or says what is wrong", err)
}

// pem is the file for certd: leaf and chain, and nothing that somebody wrote between them.
func (id *ldevid) pem() []byte {
	return devid.EncodePEM(append([]*x509.Certificate{id.leaf}, id.chain...))
}

func (id *ldevid) describe() *step.Certificate {
	return &step.Certificate{
		CommonName:   id.leaf.Subject.CommonName,
		SerialNumber: id.leaf.Subject.SerialNumber,
		Issuer:       id.leaf.Issuer.String(),
		NotBefore:    id.leaf.NotBefore,
		NotAfter:     id.leaf.NotAfter,
		SHA256:       devid.Fingerprint(id.leaf),
	}
}

// validAt says what the dates of the LDevID and its chain say against a time.
func (id *ldevid) validAt(t time.Time) error {
	for _, c := range append([]*x509.Certificate{id.leaf}, id.chain...) {
		if t.Before(c.NotBefore) || t.After(c.NotAfter) {
			return &devid.DateError{At: t, Certificate: c}
		}
	}
	return nil
}

// judgeDates judges the certificate at the time of pkg/clock. While that is
// not verified, no certificate is called bad.
func (p *Program) judgeDates(id *ldevid) error {
	now := p.opts.Clock()
	err := id.validAt(now.Time)
	switch {
	case err == nil:
		return nil
	case !now.Verified:
		return step.As(step.Temporary, "the clock is not set: "+now.Why,
			fmt.Errorf("cannot use the LDevID certificate %s yet: %w", p.certificatePath(), err))
	}
	return refuseLDevID(fmt.Errorf("cannot use the LDevID certificate %s: %w", p.certificatePath(), err))
}

// readPIN reads the user PIN of the token.
func (p *Program) readPIN() (string, error) {
	path := p.state("pins", "user-pin")
	data, err := os.ReadFile(path)
	if err != nil {
		return "", classify(fmt.Errorf("cannot read the token's user PIN: %w", err))
	}
	pin := strings.TrimSuffix(string(data), "\n")
	if pin == "" {
		return "", step.As(step.Refused, "run tpm2cloud-ldevid", fmt.Errorf("cannot use the token's user PIN: %s is empty", path))
	}
	return pin, nil
}
