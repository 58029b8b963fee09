package ek

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Names is what the subject alternative name says about the TPM (TCG EK Credential Profile 2.x,
// clause 3.2.9), as it's written there: "id:" is followed by hexadecimal digits.
type Names struct {
	Manufacturer string // such as "id:49465800"; see Vendor
	Model        string // such as "SLB9670"
	Version      string // of the firmware, such as "id:00070055"
}

// Vendor returns the manufacturer in the letters that the TCG assigned (TCG TPM Vendor ID Registry), such as
// "IFX", "INTC" or "STM", or else as the certificate writes it.
func (n Names) Vendor() string {
	digits, ok := strings.CutPrefix(n.Manufacturer, "id:")
	if !ok {
		return n.Manufacturer
	}
	id, err := hex.DecodeString(digits)
	if err != nil || len(id) != 4 {
		return n.Manufacturer
	}
	id = bytes.TrimRight(id, "\x00 ") // the registry pads to four with either
	for _, c := range id {
		if c <= ' ' || c > '~' {
			return n.Manufacturer
		}
	}
	if len(id) == 0 {
		return n.Manufacturer
	}
	return string(id)
}

// String returns vendor, model and version, such as "STM ST33HTPHAHB4 id:00490004", and "" if all are unknown.
func (n Names) String() string {
	return strings.Join(strings.Fields(n.Vendor()+" "+n.Model+" "+n.Version), " ")
}

var (
	oidSubjectAltName  = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidTPMManufacturer = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidTPMModel        = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidTPMVersion      = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
)

// parseNames reads the subject alternative name. It fails unless the whole extension is well
// formed and a directoryName in it names the manufacturer of a TPM, because only then may Verify
// say that it understood the extension.
func parseNames(cert *x509.Certificate) (Names, error) {
	for _, ext := range cert.Extensions {
		if ext.Id.Equal(oidSubjectAltName) {
			return parseSubjectAltName(ext.Value)
		}
	}
	return Names{}, errors.New("there is no subject alternative name")
}

// parseSubjectAltName parses GeneralNames (RFC 5280, section 4.2.1.6). The attributes lie in one RDN each or all
// in one RDN: vendors do both.
func parseSubjectAltName(der []byte) (Names, error) {
	const directoryName = 4
	var general []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &general); err != nil {
		return Names{}, fmt.Errorf("cannot parse the subject alternative name: %w", err)
	} else if len(rest) > 0 {
		return Names{}, errors.New("cannot parse the subject alternative name: trailing data")
	}
	var n Names
	for _, g := range general {
		if g.Class != asn1.ClassContextSpecific || g.Tag != directoryName {
			continue // other names of the TPM give no rights here, and restrict nothing
		}
		var dn pkix.RDNSequence
		if rest, err := asn1.Unmarshal(g.Bytes, &dn); err != nil {
			return Names{}, fmt.Errorf("cannot parse its directoryName: %w", err)
		} else if len(rest) > 0 {
			return Names{}, errors.New("cannot parse its directoryName: trailing data")
		}
		for _, rdn := range dn {
			for _, a := range rdn {
				if err := n.set(a); err != nil {
					return Names{}, err
				}
			}
		}
	}
	if n.Manufacturer == "" {
		return Names{}, errors.New("no directoryName names the manufacturer of a TPM (2.23.133.2.1)")
	}
	return n, nil
}

// set takes one attribute, if it's one of the TCG's three.
func (n *Names) set(a pkix.AttributeTypeAndValue) error {
	var field *string
	switch {
	case a.Type.Equal(oidTPMManufacturer):
		field = &n.Manufacturer
	case a.Type.Equal(oidTPMModel):
		field = &n.Model
	case a.Type.Equal(oidTPMVersion):
		field = &n.Version
	default:
		return nil
	}
	value, ok := a.Value.(string)
	if !ok || value == "" {
		return fmt.Errorf("its attribute %s is not a text", a.Type)
	}
	if *field != "" {
		return fmt.Errorf("its attribute %s appears twice", a.Type)
	}
	*field = value
	return nil
}

// describe names a certificate for an error or a warning, also one with an empty subject.
func describe(cert *x509.Certificate) string {
	if s := cert.Subject.String(); s != "" {
		return s
	}
	if n, err := parseNames(cert); err == nil {
		return n.String()
	}
	return "serial number " + cert.SerialNumber.Text(16)
}
