package enroll_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/enroll"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// A caBench is a device with the files of a CA.
type caBench struct {
	dir     string
	cfg     config.Enroll
	request enroll.Request
}

func newCABench(t *testing.T, key crypto.Signer) *caBench {
	t.Helper()
	subject := devid.Subject("dev-1", "SN1", "")
	csr, err := devid.CSR(key, subject)
	if err != nil {
		t.Fatal(err)
	}
	return &caBench{
		dir:     t.TempDir(),
		cfg:     config.Enroll{Method: config.MethodCA, CACertificate: "/ca.pem", CAKey: "/ca.key"},
		request: enroll.Request{CSR: csr, Expect: devid.Expect{Key: key.Public(), Subject: subject, ClientAuth: true}},
	}
}

func (b *caBench) write(t *testing.T, ca *pki.CA, more ...*x509.Certificate) {
	t.Helper()
	writeCerts(t, b.dir, "ca.pem", append([]*x509.Certificate{ca.Cert}, more...)...)
	writeFile(t, b.dir, "ca.key", ca.KeyPEM(t), 0o600)
}

func (b *caBench) enroll(t *testing.T) (*enroll.Result, error) {
	t.Helper()
	e, err := enroll.New(b.cfg, enroll.Options{Section: "idevid.enroll", Path: func(p string) string { return filepath.Join(b.dir, p) }})
	if err != nil {
		t.Fatal(err)
	}
	return e.Enroll(context.Background(), b.request)
}

func TestCA(t *testing.T) {
	for name, keys := range map[string][2]crypto.Signer{"ECC": {pki.NewKey(t), pki.NewKey(t)}, "RSA": {pki.NewRSAKey(t), pki.NewRSAKey(t)}} {
		t.Run(name, func(t *testing.T) {
			root := pki.NewCA(t, "root", nil)
			issuing := pki.NewCAWithKey(t, "issuing", keys[0], root)
			b := newCABench(t, keys[1])
			b.write(t, issuing, root.Cert)
			result, err := b.enroll(t)
			if err != nil {
				t.Fatal(err)
			}
			leaf := result.Chain.Leaf
			usage := x509.KeyUsageDigitalSignature
			if name == "RSA" {
				usage |= x509.KeyUsageKeyEncipherment
			}
			if leaf.KeyUsage != usage || !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || leaf.IsCA || !leaf.BasicConstraintsValid ||
				len(leaf.SubjectKeyId) != 20 || !slices.Equal(leaf.AuthorityKeyId, issuing.Cert.SubjectKeyId) || leaf.SerialNumber.Sign() <= 0 || leaf.SerialNumber.BitLen() < 64 {
				t.Errorf("got %+v", leaf)
			}
			if len(result.CA) != 2 || len(result.Chain.Intermediates) != 1 || len(result.Chain.Warnings) != 0 {
				t.Errorf("got the chain %+v", result.Chain)
			}
			if left := time.Until(leaf.NotAfter); left < 9*365*24*time.Hour || left > 11*365*24*time.Hour {
				t.Errorf("it ends %v", leaf.NotAfter)
			}
			openssl(t, b.dir, root, result.Chain)
		})
	}
}

// openssl is a stranger, and must find the chain good for a TLS client.
func openssl(t *testing.T, dir string, root *pki.CA, chain *devid.Chain) {
	t.Helper()
	program, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatalf("%v: scripts/deps installs it", err)
	}
	writeCerts(t, dir, "root.pem", root.Cert)
	writeFile(t, dir, "chain.pem", chain.PEM(), 0o644)
	cmd := exec.Command(program, "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "root.pem", "-untrusted", "chain.pem", "chain.pem")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "chain.pem: OK") {
		t.Errorf("openssl: %v: %s", err, out)
	}
}

func TestCAValidity(t *testing.T) {
	day := 24 * time.Hour
	for name, test := range map[string]struct {
		days     int
		noExpiry bool
		caLeft   time.Duration
		want     time.Time
	}{
		"ten years":          {0, false, 7300 * day, time.Now().AddDate(10, 0, 0)},
		"days":               {30, false, 7300 * day, time.Now().Add(30 * day)},
		"the CA ends first":  {30, false, 10 * day, time.Now().Add(10 * day)},
		"IDevID":             {0, true, 10 * day, devid.NoExpiry()},
		"IDevID with an end": {30, true, 7300 * day, time.Now().Add(30 * day)},
	} {
		t.Run(name, func(t *testing.T) {
			b := newCABench(t, pki.NewKey(t))
			b.cfg.Days, b.request.Expect.NoExpiry = test.days, test.noExpiry
			b.write(t, pki.NewCA(t, "root", nil, func(c *x509.Certificate) {
				c.NotBefore, c.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(test.caLeft)
			}))
			result, err := b.enroll(t)
			if err != nil {
				t.Fatal(err)
			}
			leaf := result.Chain.Leaf
			if leaf.NotAfter.Sub(test.want).Abs() > time.Minute {
				t.Errorf("it ends %v, want %v", leaf.NotAfter, test.want)
			}
			if leaf.NotBefore.Before(result.CA[0].NotBefore) {
				t.Errorf("it begins %v, before its CA", leaf.NotBefore)
			}
			if test.noExpiry == (test.days == 0) && len(result.Chain.Warnings) != 0 {
				t.Errorf("got the warnings %q", result.Chain.Warnings)
			}
		})
	}
}

func TestCAKeyFormats(t *testing.T) {
	ec, rs := pki.NewKey(t), pki.NewRSAKey(t)
	sec1, err := x509.MarshalECPrivateKey(ec)
	ecPEM := pemKey(t, "EC PRIVATE KEY", sec1, err)
	for name, test := range map[string]struct {
		key  crypto.Signer
		file []byte
	}{
		"EC":                 {ec, ecPEM},
		"EC with parameters": {ec, append(pemKey(t, "EC PARAMETERS", []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}, nil), ecPEM...)},
		"RSA":                {rs, pemKey(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rs), nil)},
	} {
		t.Run(name, func(t *testing.T) {
			b := newCABench(t, pki.NewKey(t))
			b.write(t, pki.NewCAWithKey(t, "root", test.key, nil))
			writeFile(t, b.dir, "ca.key", test.file, 0o600)
			if _, err := b.enroll(t); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCARefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*testing.T, *caBench)
		class  step.Class
		text   string
		hint   string
	}{
		"no certificate":      {func(t *testing.T, b *caBench) { b.cfg.CACertificate = "/none.pem" }, step.Configuration, "/none.pem", "ca_certificate"},
		"no key":              {func(t *testing.T, b *caBench) { b.cfg.CAKey = "/none.key" }, step.Configuration, "/none.key", "ca_key"},
		"key readable by all": {func(t *testing.T, b *caBench) { chmod(t, b, 0o644) }, step.Configuration, "its mode is 0644", "ca_key"},
		"key of the group":    {func(t *testing.T, b *caBench) { chmod(t, b, 0o640) }, step.Configuration, "its mode is 0640", "ca_key"},
		"key of another CA": {func(t *testing.T, b *caBench) {
			b.write(t, &pki.CA{Cert: pki.NewCA(t, "x", nil).Cert, Key: pki.NewKey(t)})
		}, step.Configuration, "the private key is another one's", "ca_certificate and ca_key"},
		"not a CA": {func(t *testing.T, b *caBench) {
			b.write(t, pki.NewCA(t, "x", nil, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature }))
		}, step.Configuration, "not the certificate of a CA", "ca_certificate"},
		"CA that may not sign": {func(t *testing.T, b *caBench) {
			b.write(t, pki.NewCA(t, "x", nil, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }))
		}, step.Configuration, "keyCertSign", ""},
		"expired CA": {func(t *testing.T, b *caBench) {
			b.write(t, pki.NewCA(t, "x", nil, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) }))
		}, step.Temporary, "ended", "clock"},
		"encrypted key": {func(t *testing.T, b *caBench) {
			writeFile(t, b.dir, "ca.key", pemKey(t, "ENCRYPTED PRIVATE KEY", []byte{0}, nil), 0o600)
		}, step.Configuration, "encrypted", ""},
		"encrypted key, old style": {func(t *testing.T, b *caBench) {
			writeFile(t, b.dir, "ca.key", []byte("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"), 0o600)
		}, step.Configuration, "encrypted", ""},
		"certificate as key": {func(t *testing.T, b *caBench) { b.cfg.CAKey = "/ca.pem"; chmod(t, b, 0o600) }, step.Configuration, `"CERTIFICATE" is not a private key`, ""},
		"no PEM":             {func(t *testing.T, b *caBench) { writeFile(t, b.dir, "ca.key", []byte("x"), 0o600) }, step.Configuration, "no PEM block", ""},
		"damaged request":    {func(t *testing.T, b *caBench) { b.request.CSR[len(b.request.CSR)-1] ^= 1 }, step.Refused, "the certificate request", ""},
		"other request": {func(t *testing.T, b *caBench) {
			b.request.CSR = newCABench(t, pki.NewKey(t)).request.CSR
		}, step.Refused, "another key", ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newCABench(t, pki.NewKey(t))
			b.write(t, pki.NewCA(t, "root", nil))
			test.change(t, b)
			_, err := b.enroll(t)
			if err == nil || step.ClassOf(err) != test.class || !strings.Contains(err.Error(), test.text) || !strings.Contains(step.HintOf(err), test.hint) {
				t.Errorf("got %d: %v\nhint: %s", step.ClassOf(err), err, step.HintOf(err))
			}
		})
	}
}

func chmod(t *testing.T, b *caBench, mode os.FileMode) {
	t.Helper()
	for _, name := range []string{"ca.key", "ca.pem"} {
		if err := os.Chmod(filepath.Join(b.dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
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
	writeFile(t, root, name, pki.PEM(certs...), 0o644)
}
