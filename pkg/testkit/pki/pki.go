// Package pki makes keys and certificates for tests. Its CAs issue whatever they
// are asked for, because most tests are about certificates that should not be.
//
// Without a change, a certificate holds at every time at which a test judges
// one, and not in 1970, where a clock that was never set is.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"net"
	"testing"
	"time"
)

// NewKey makes a key on P-256.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	return NewKeyOn(t, elliptic.P256())
}

// NewKeyOn makes a key on another curve.
func NewKeyOn(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// NewRSAKey makes an RSA key of 2048 bits, which takes long.
func NewRSAKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// A Change is made to the template of a certificate before it is signed.
type Change = func(*x509.Certificate)

// Dates sets the first and the last moment of a certificate.
func Dates(from, to time.Time) Change {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = from, to }
}

// Years sets them to the beginnings of two years.
func Years(from, to int) Change {
	return Dates(time.Date(from, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(to, 1, 1, 0, 0, 0, 0, time.UTC))
}

// A CA issues certificates. One that has a key only issues what that key signs
// for itself.
type CA struct {
	Cert *x509.Certificate
	Key  crypto.Signer
}

// NewCA makes a CA below parent; without a parent it is a root.
func NewCA(t testing.TB, name string, parent *CA, changes ...Change) *CA {
	t.Helper()
	return NewCAWithKey(t, name, NewKey(t), parent, changes...)
}

// NewCAWithKey makes a CA with a key that the test chooses.
func NewCAWithKey(t testing.TB, name string, key crypto.Signer, parent *CA, changes ...Change) *CA {
	t.Helper()
	if parent == nil {
		parent = &CA{Key: key}
	}
	authority := func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
		Years(2000, 2100)(c)
	}
	return &CA{parent.Issue(t, key.Public(), pkix.Name{CommonName: name}, append([]Change{authority}, changes...)...), key}
}

// Issue makes a certificate, of a TLS client if no change says otherwise.
func (ca *CA) Issue(t testing.TB, public crypto.PublicKey, subject pkix.Name, changes ...Change) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		Subject:               subject,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	Years(2010, 2090)(template)
	for _, change := range changes {
		change(template)
	}
	parent := ca.Cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// Server makes what a TLS server on this machine shows, by any of its names.
func (ca *CA) Server(t testing.TB, changes ...Change) tls.Certificate {
	t.Helper()
	server := func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		c.DNSNames, c.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	}
	key := NewKey(t)
	return TLS(key, ca.Issue(t, key.Public(), pkix.Name{CommonName: "server"}, append([]Change{server}, changes...)...))
}

// TLS puts a key and its certificate together, as crypto/tls wants them.
func TLS(key crypto.Signer, cert *x509.Certificate) tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// KeyPEM is the CA's private key in a file's form (PKCS #8).
func (ca *CA) KeyPEM(t testing.TB) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// PEM is the form that certificates have in files.
func PEM(certs ...*x509.Certificate) []byte {
	var text []byte
	for _, c := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

// TPMName makes the subject alternative name of an EK certificate: a
// directoryName with the TPM's manufacturer, model and version, each in an RDN
// of its own. Values need not be strings.
func TPMName(t testing.TB, values ...any) []byte {
	t.Helper()
	var name pkix.RDNSequence
	for i, v := range values {
		name = append(name, pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, i + 1}, Value: v}})
	}
	directory := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: Marshal(t, name)}
	return Marshal(t, []asn1.RawValue{directory})
}

// Marshal encodes a value in DER.
func Marshal(t testing.TB, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
