package devid

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

// Bounds for files of certificates. The largest that is of use here is a distribution's bundle of all public
// roots, which has some 150 certificates in 250 KiB.
const (
	maxPEMSize  = 1 << 20
	maxPEMCount = 500
)

// ParsePEM reads a file of certificates: at least one, and nothing else between the PEM lines. Text
// around them is allowed, as `openssl x509 -text` writes it.
func ParsePEM(data []byte) ([]*x509.Certificate, error) {
	certs, err := parsePEM(data)
	if err != nil {
		return nil, fmt.Errorf("cannot read the certificates: %w", err)
	}
	return certs, nil
}

func parsePEM(data []byte) ([]*x509.Certificate, error) {
	if len(data) > maxPEMSize {
		return nil, fmt.Errorf("%d bytes are more than the %d that are allowed", len(data), maxPEMSize)
	}
	// encoding/pem passes over what is damaged or cut off: count what should be there.
	begun := bytes.Count(data, []byte("-----BEGIN "))
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("there is a PEM block %q, and only CERTIFICATE is allowed", block.Type)
		}
		if len(certs) == maxPEMCount {
			return nil, fmt.Errorf("there are more than %d", maxPEMCount)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("number %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	switch {
	case begun > len(certs):
		return nil, fmt.Errorf("%d of %d are damaged or cut off", begun-len(certs), begun)
	case len(certs) == 0:
		return nil, errors.New("there is no PEM certificate")
	}
	return certs, nil
}

// ParseChainPEM reads what [Chain.PEM] wrote: the leaf, then its intermediates. It checks nothing; for that, hand
// both to [Check].
func ParseChainPEM(data []byte) (leaf *x509.Certificate, intermediates []*x509.Certificate, err error) {
	certs, err := ParsePEM(data)
	if err != nil {
		return nil, nil, err
	}
	return certs[0], certs[1:], nil
}

// EncodePEM writes certificates in the order that they have.
func EncodePEM(certs []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}

// Fingerprint is the SHA-256 of the certificate, in hexadecimal digits.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}
