package ek_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"sync"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/ek"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// now is inside the validity of every certificate of the tests, made or real.
var now = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

var (
	oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidEKU = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
)

// ca is the CA of a TPM's vendor.
type ca struct{ *pki.CA }

func extension(id asn1.ObjectIdentifier, critical bool, value []byte) pki.Change {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: id, Critical: critical, Value: value})
	}
}

// withSAN replaces the subject alternative name; with nil there's none.
func withSAN(critical bool, value []byte) pki.Change {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = nil
		if value != nil {
			extension(oidSAN, critical, value)(c)
		}
	}
}

// newCA returns a CA that parent signed, or a self-signed one. CAs of one name
// have one key identifier, whatever their keys.
func newCA(t testing.TB, name string, parent *ca, changes ...pki.Change) *ca {
	t.Helper()
	if parent == nil {
		parent = &ca{}
	}
	identifier := func(c *x509.Certificate) { c.SubjectKeyId = []byte(name) }
	return &ca{pki.NewCA(t, name, parent.CA, append([]pki.Change{identifier, pki.Years(2015, 2035)}, changes...)...)}
}

// ek returns the DER of an EK certificate for a new P-256 key.
func (a *ca) ek(t testing.TB, changes ...pki.Change) []byte {
	t.Helper()
	return a.ekFor(t, pki.NewKey(t).Public(), changes...)
}

func (a *ca) ekFor(t testing.TB, key crypto.PublicKey, changes ...pki.Change) []byte {
	t.Helper()
	san := pki.TPMName(t, "id:49465800", "SLB9670", "id:00070055")
	of := func(c *x509.Certificate) {
		c.KeyUsage, c.ExtKeyUsage, c.UnknownExtKeyUsage = x509.KeyUsageKeyAgreement, nil, []asn1.ObjectIdentifier{oidEKU}
		c.IssuingCertificateURL = []string{"http://ca.example/issuer.crt"}
	}
	return a.Issue(t, key, pkix.Name{}, append([]pki.Change{of, pki.Years(2018, 2028), withSAN(true, san)}, changes...)...).Raw
}

func mustParse(t testing.TB, blob []byte) *ek.Certificate {
	t.Helper()
	c, err := ek.Parse(blob)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// rsa2048 is the one RSA key of the tests, because making one takes long.
var rsa2048 = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})
