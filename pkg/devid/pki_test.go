package devid_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"
	"time"
)

// now is when the tests judge certificates, whatever the clock says.
var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRSAKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// A testCA issues whatever it is asked for.
type testCA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

type change func(*x509.Certificate)

// newCA makes a root, or a CA below parent.
func newCA(t *testing.T, name string, parent *testCA, changes ...change) *testCA {
	t.Helper()
	ca := &testCA{key: newKey(t)}
	if parent == nil {
		parent = ca
	}
	ca.cert = parent.issue(t, ca.key.Public(), pkix.Name{CommonName: name}, append([]change{func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
		c.NotBefore, c.NotAfter = now.AddDate(-1, 0, 0), now.AddDate(20, 0, 0)
	}}, changes...)...)
	return ca
}

func (ca *testCA) issue(t *testing.T, public crypto.PublicKey, subject pkix.Name, changes ...change) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		Subject:               subject,
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.AddDate(1, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	for _, change := range changes {
		change(template)
	}
	parent := ca.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func dates(from, to time.Time) change {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = from, to }
}
