package enroll

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// issueLocally is the method ca: there is no server, and the certificate is signed with a CA's key in a file. That is for
// benches: whoever has the file can make any device's identity.
//
// The file of certificates holds the issuing CA first, then its chain up to the root, if it isn't one itself.
func (e *Enroller) issueLocally(_ context.Context, r Request) (answer, ca []*x509.Certificate, err error) {
	ca, err = e.readCertificates(e.enroll.CACertificate)
	if err != nil {
		return nil, nil, badFile(e.hint("ca_certificate must be a PEM file with the CA's certificate first"), err)
	}
	key, err := readKey(e.options.Path(e.enroll.CAKey))
	if err != nil {
		return nil, nil, badFile(e.hint("ca_key must be a PEM file of mode 0600 with the CA's private key"), err)
	}
	if err := checkCA(ca[0], key); err != nil {
		return nil, nil, step.As(step.Configuration, e.hint("check ca_certificate and ca_key"), err)
	}
	leaf, err := e.sign(r, ca[0], key)
	if err != nil {
		return nil, nil, step.As(step.Refused, "", fmt.Errorf("cannot issue the certificate with the CA %q: %w", ca[0].Subject, err))
	}
	return []*x509.Certificate{leaf}, ca, nil
}

func checkCA(ca *x509.Certificate, key crypto.Signer) error {
	switch {
	case !ca.BasicConstraintsValid || !ca.IsCA:
		return fmt.Errorf("cannot issue with %q: it is not the certificate of a CA", ca.Subject)
	case ca.KeyUsage != 0 && ca.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("cannot issue with %q: its key usage lacks keyCertSign", ca.Subject)
	case !devid.SameKey(key.Public(), ca.PublicKey):
		return fmt.Errorf("cannot issue with %q: the private key is another one's", ca.Subject)
	}
	return nil
}

// backdate makes a certificate valid for a device or a server whose clock is behind ours.
const backdate = time.Hour

func (e *Enroller) sign(r Request, ca *x509.Certificate, key crypto.Signer) (*x509.Certificate, error) {
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("the certificate request: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(csr.PublicKey)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(spki)
	template := &x509.Certificate{
		// Without a serial number, crypto/x509 draws one at random, as RFC 5280, section 4.1.2.2, wants it.
		RawSubject:            csr.RawSubject,
		NotBefore:             e.options.Now().Add(-backdate),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,    // CA:FALSE, said aloud
		SubjectKeyId:          id[:20], // as RFC 7093, section 2, method 4, cut as method 1
	}
	if template.NotBefore.Before(ca.NotBefore) {
		template.NotBefore = ca.NotBefore
	}
	template.NotAfter = e.end(r.Expect.NoExpiry, ca)
	if _, ok := csr.PublicKey.(*rsa.PublicKey); ok {
		template.KeyUsage |= x509.KeyUsageKeyEncipherment // TLS 1.2 with RSA key transport
	}
	if r.Expect.ClientAuth {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, csr.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// end is the notAfter. An IDevID has none (802.1AR), and so outlives every CA; any other certificate ends
// with its CA at the latest, because it's worth nothing afterwards and should say so.
func (e *Enroller) end(noExpiry bool, ca *x509.Certificate) time.Time {
	now := e.options.Now()
	end := now.AddDate(10, 0, 0)
	switch {
	case e.enroll.Days > 0:
		end = now.AddDate(0, 0, e.enroll.Days)
	case noExpiry:
		return devid.NoExpiry()
	}
	if end.After(ca.NotAfter) {
		return ca.NotAfter
	}
	return end
}

// readKey reads a private key in PEM: PKCS#8, or the older forms of OpenSSL for RSA and elliptic curves.
func readKey(path string) (crypto.Signer, error) {
	const groupAndOthers = 0o077
	data, err := readFile(path, groupAndOthers)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("cannot read the private key in %s: %w", path, err)
	}
	return key, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, errors.New("there is no PEM block with a private key")
		}
		data = rest
		var key any
		var err error
		switch block.Type {
		case "EC PARAMETERS": // openssl ecparam -genkey writes it in front of the key
			continue
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("it is encrypted, and nobody is there at boot to type the password")
		default:
			return nil, fmt.Errorf("a PEM block %q is not a private key", block.Type)
		}
		if _, encrypted := block.Headers["DEK-Info"]; encrypted {
			return nil, errors.New("it is encrypted, and nobody is there at boot to type the password")
		}
		if err != nil {
			return nil, err
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a key of type %T cannot sign", key)
		}
		return signer, nil
	}
}
