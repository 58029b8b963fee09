package idevid

import (
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
)

// Export reads the IDevID certificate from NV.
func (p *Program) Export() (*x509.Certificate, error) {
	chain, err := identity.ReadIDevID(p.tpm, p.files)
	if err != nil {
		return nil, err
	}
	return chain.Leaf, nil
}

// Verified is what Verify found good.
type Verified struct {
	Certificate *x509.Certificate
	Warnings    []string
}

// Verify proves the IDevID as somebody would who relies on it: the certificate
// in NV leads to the manufacturer's CA (the one kept at enrolment, unless a
// file is named), the TPM signs with its key, and the common name is the one
// expected (the configuration's, unless one is given).
func (p *Program) Verify(caFile, commonName string) (*Verified, error) {
	chain, err := identity.ReadIDevID(p.tpm, p.files)
	if err != nil {
		return nil, err
	}
	if _, err := identity.ProveIDevID(p.tpm, chain.Leaf); err != nil {
		return nil, err
	}
	if caFile == "" {
		caFile = p.cfg.LDevID.IDevIDCA
	}
	roots, err := identity.IDevIDCA(p.cfg, caFile, p.files)
	if err != nil {
		return nil, err
	}
	if commonName == "" {
		var ekName []byte
		if strings.Contains(p.cfg.IDevID.CommonName, "{ek}") {
			if ekName, err = p.ekName(); err != nil {
				return nil, err
			}
		}
		if commonName, err = p.device.Expand(p.cfg.IDevID.CommonName, ekName); err != nil {
			return nil, err
		}
	}
	warnings, err := identity.JudgeIDevID(chain, roots, commonName, p.clock())
	if err != nil {
		return nil, err
	}
	return &Verified{chain.Leaf, warnings}, nil
}

// ekName is the EK's name, which names of devices may be made of.
func (p *Program) ekName() ([]byte, error) {
	certified, err := p.certified()
	if err != nil {
		return nil, err
	}
	key, err := p.tpm.ReadPublic(ekHandle(certified))
	if err != nil {
		return nil, fmt.Errorf("cannot name the EK: %w", err)
	}
	return key.Name, nil
}
