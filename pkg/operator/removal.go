package operator

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"

	"github.com/tpm2cloud/tpm2cloud/pkg/check"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/reset"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Removal are the steps of all programs: the last to be made is the first to go.
func Removal(s *check.Subject, scope reset.Scope) ([]reset.Step, error) {
	if s.TPMErr != nil {
		return nil, s.TPMErr
	}
	if s.Edgecfg == nil {
		return nil, step.Fail(step.Configuration, "cannot find out how the agent is configured: see [edge] method")
	}
	steps := append(s.Edgecfg.Removal(), s.LDevID.Removal()...)
	if scope == reset.All {
		steps = append(steps, s.IDevID.Removal()...)
	}
	return steps, nil
}

// Certificates are those that outlive their keys, and those that a reset of
// everything may have been about to remove and that this one keeps.
func Certificates(s *check.Subject, scope reset.Scope) (revoke, kept []reset.Certificate, err error) {
	revoke = []reset.Certificate{}
	operational, err := s.Edgecfg.Operational()
	if err != nil {
		return nil, nil, err
	}
	for _, c := range operational {
		revoke = append(revoke, certificate("operational", c))
	}
	chain, err := identity.ReadChain(identity.Dir(s.Config, identity.LDevID))
	switch {
	case err == nil:
		revoke = append(revoke, certificate("LDevID", chain.Leaf))
	case !errors.Is(err, fs.ErrNotExist) && step.ClassOf(err) != step.Refused:
		return nil, nil, err
	}
	chain, err = identity.ReadIDevID(s.TPM, identity.Dir(s.Config, identity.IDevID))
	if step.ClassOf(err) == step.Refused {
		// Whatever is wrong with it, there is nothing to revoke.
		return revoke, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	made, err := s.IDevID.Made()
	if err != nil {
		return nil, nil, err
	}
	idevid := certificate("IDevID", chain.Leaf)
	if scope == reset.All && made {
		return append(revoke, idevid), nil, nil
	}
	return revoke, []reset.Certificate{idevid}, nil
}

func certificate(what string, c *x509.Certificate) reset.Certificate {
	return reset.Certificate{What: what, CommonName: c.Subject.CommonName,
		Serial: fmt.Sprintf("%x", c.SerialNumber), Issuer: c.Issuer.String(), NotAfter: c.NotAfter.UTC()}
}
