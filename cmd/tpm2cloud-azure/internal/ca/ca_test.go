package ca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

func TestIssuing(t *testing.T) {
	usage := func(u x509.KeyUsage) pki.Change { return func(c *x509.Certificate) { c.KeyUsage = u } }
	root := pki.NewCA(t, "Root", nil)
	middle := pki.NewCA(t, "Middle", root)
	bottom := pki.NewCA(t, "Bottom", middle)
	other := pki.NewCA(t, "Other", nil)
	silent := pki.NewCA(t, "Silent", nil, usage(0))
	mute := pki.NewCA(t, "Mute", nil, usage(x509.KeyUsageCRLSign))
	early := pki.NewCA(t, "Early", nil, pki.Years(2090, 2100))
	late := pki.NewCA(t, "Late", nil, pki.Years(2000, 2001))
	leaf := root.Issue(t, pki.NewKey(t).Public(), pkix.Name{CommonName: "Leaf"})
	// A root that has changed its key, and signed the new one with the old one: RFC 7030, section 4.1.3.
	renewed := pki.NewCA(t, "Root", nil)
	newWithOld := root.Issue(t, renewed.Key.Public(), pkix.Name{CommonName: "Root"}, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign })

	list := func(certs ...*x509.Certificate) []*x509.Certificate { return certs }
	for _, c := range []struct {
		name  string
		certs []*x509.Certificate
		want  *x509.Certificate
		why   string
	}{
		{"one", list(root.Cert), root.Cert, ""},
		{"a chain in any order", list(middle.Cert, bottom.Cert, root.Cert), bottom.Cert, ""},
		{"twice the same", list(bottom.Cert, bottom.Cert), bottom.Cert, ""},
		{"a new root beside the old one", list(root.Cert, renewed.Cert, newWithOld, middle.Cert), nil, "cannot tell which of 4"},
		{"two", list(bottom.Cert, other.Cert), nil, `"Bottom"; "Other"`},
		{"without key usage", list(silent.Cert), silent.Cert, ""},
		{"for CRLs only", list(mute.Cert), nil, "keyCertSign"},
		{"a leaf", list(leaf), nil, "no CA certificate"},
		{"a leaf in a chain", list(root.Cert, leaf), nil, "no CA certificate"},
		{"not yet", list(early.Cert), nil, "valid from 2090"},
		{"no longer", list(late.Cert), nil, "has expired at 2001"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Issuing(c.certs, time.Now())
			switch {
			case c.want != nil && (err != nil || !got.Equal(c.want)):
				t.Errorf("%v, %v", got, err)
			case c.why != "" && (err == nil || !strings.Contains(err.Error(), c.why)):
				t.Errorf("error %v, want %q", err, c.why)
			case c.why != "" && (step.ClassOf(err) != step.Refused || step.HintOf(err) == ""):
				t.Errorf("class %d, hint %q", step.ClassOf(err), step.HintOf(err))
			}
		})
	}
}

// TestProof has openssl verify what the service would.
func TestProof(t *testing.T) {
	authority := pki.NewCA(t, "CA", nil)
	der, err := Proof(authority.Cert, authority.Key, "A3F0", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ca.pem"), pki.PEM(authority.Cert))
	write(t, filepath.Join(dir, "proof.pem"), pki.PEM(cert))
	cmd := exec.Command("openssl", "verify", "-CAfile", "ca.pem", "proof.pem")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if cert.Subject.CommonName != "A3F0" || cert.IsCA {
		t.Errorf("the proof is %v, CA %t", cert.Subject, cert.IsCA)
	}
	if _, err := Proof(authority.Cert, pki.NewKey(t), "A3F0", time.Now()); step.ClassOf(err) != step.Configuration {
		t.Errorf("another key: %v", err)
	}
}

// TestReadKey takes the files that openssl writes and has written.
func TestReadKey(t *testing.T) {
	dir := t.TempDir()
	openssl := func(args ...string) {
		t.Helper()
		cmd := exec.Command("openssl", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v: %s", args, err, out)
		}
	}
	openssl("ecparam", "-name", "prime256v1", "-genkey", "-out", "sec1.pem") // with EC PARAMETERS before it
	openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-out", "pkcs8.pem")
	openssl("genrsa", "-traditional", "-out", "pkcs1.pem", "2048")
	openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-aes128", "-pass", "pass:x", "-out", "encrypted.pem")
	write(t, filepath.Join(dir, "broken.pem"), []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	for _, name := range []string{"sec1.pem", "pkcs8.pem", "pkcs1.pem"} {
		if _, err := ReadKey(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"encrypted.pem", "broken.pem", "missing.pem"} {
		if _, err := ReadKey(filepath.Join(dir, name)); step.ClassOf(err) != step.Configuration || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
