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

// Certificates are those that outlive their keys.
func Certificates(s *check.Subject, scope reset.Scope) ([]reset.Certificate, error) {
	list := []reset.Certificate{}
	add := func(what string, c *x509.Certificate) {
		list = append(list, reset.Certificate{What: what, CommonName: c.Subject.CommonName,
			Serial: fmt.Sprintf("%x", c.SerialNumber), Issuer: c.Issuer.String(), NotAfter: c.NotAfter.UTC()})
	}
	operational, err := s.Edgecfg.Operational()
	if err != nil {
		return nil, err
	}
	for _, c := range operational {
		add("operational", c)
	}
	chain, err := identity.ReadChain(identity.Dir(s.Config, identity.LDevID))
	switch {
	case err == nil:
		add("LDevID", chain.Leaf)
	case !errors.Is(err, fs.ErrNotExist) && step.ClassOf(err) != step.Refused:
		return nil, err
	}
	if scope == reset.All {
		// Whatever is wrong with it, it is to be removed, and there is nothing to revoke.
		if chain, err := identity.ReadIDevID(s.TPM, identity.Dir(s.Config, identity.IDevID)); err == nil {
			add("IDevID", chain.Leaf)
		} else if step.ClassOf(err) != step.Refused {
			return nil, err
		}
	}
	return list, nil
}
