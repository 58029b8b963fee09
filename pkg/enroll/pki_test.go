package enroll_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
)

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
func newCA(t *testing.T, name string, key crypto.Signer, parent *testCA, changes ...change) *testCA {
	t.Helper()
	ca := &testCA{key: key}
	if parent == nil {
		parent = ca
	}
	ca.cert = parent.issue(t, key.Public(), pkix.Name{CommonName: name}, append([]change{func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
		c.NotBefore, c.NotAfter = time.Now().AddDate(-1, 0, 0), time.Now().AddDate(20, 0, 0)
	}}, changes...)...)
	return ca
}

func (ca *testCA) issue(t *testing.T, public crypto.PublicKey, subject pkix.Name, changes ...change) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		Subject:               subject,
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(1, 0, 0),
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

func (ca *testCA) server(t *testing.T, changes ...change) tls.Certificate {
	t.Helper()
	key := newKey(t)
	cert := ca.issue(t, key.Public(), pkix.Name{CommonName: "server"}, append([]change{func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}}, changes...)...)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func writeFile(t *testing.T, root, name string, data []byte, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}

func writeCerts(t *testing.T, root, name string, certs ...*x509.Certificate) {
	t.Helper()
	writeFile(t, root, name, devid.EncodePEM(certs), 0o644)
}
