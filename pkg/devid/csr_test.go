package devid_test

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os/exec"
	"strings"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

func TestCSR(t *testing.T) {
	subject := devid.Subject("dev-1", "SN/1", "Example Ltd")
	for name, key := range map[string]crypto.Signer{"ECC": pki.NewKey(t), "RSA": pki.NewRSAKey(t)} {
		t.Run(name, func(t *testing.T) {
			der, err := devid.CSR(key, subject)
			if err != nil {
				t.Fatal(err)
			}
			if !devid.SameCSR(der, key.Public(), subject) {
				t.Error("it does not know its own request")
			}
			if devid.SameCSR(der, pki.NewKey(t).Public(), subject) {
				t.Error("it takes another key")
			}
			if devid.SameCSR(der, key.Public(), devid.Subject("dev-2", "SN/1", "Example Ltd")) {
				t.Error("it takes another subject")
			}
			damaged := bytes.Clone(der)
			damaged[len(damaged)-1] ^= 1
			if devid.SameCSR(damaged, key.Public(), subject) || devid.SameCSR(nil, key.Public(), subject) {
				t.Error("it takes a damaged request")
			}
			openssl(t, der)
		})
	}
}

// openssl is a stranger, and must understand the request and its signature.
func openssl(t *testing.T, csr []byte) {
	t.Helper()
	program, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatalf("%v: scripts/deps installs it", err)
	}
	cmd := exec.Command(program, "req", "-verify", "-noout", "-subject", "-nameopt", "RFC2253")
	cmd.Stdin = bytes.NewReader(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "self-signature verify OK") ||
		!strings.Contains(string(out), "serialNumber=SN/1,CN=dev-1,O=Example Ltd") {
		t.Errorf("openssl: %v: %s", err, out)
	}
}

func TestCSRRefuses(t *testing.T) {
	long := strings.Repeat("x", 65)
	for name, test := range map[string]struct {
		key     crypto.Signer
		subject pkix.Name
		text    string
	}{
		"P-384":                       {pki.NewKeyOn(t, elliptic.P384()), devid.Subject("x", "", ""), "P-384"},
		"no common name":              {nil, devid.Subject("", "1", ""), "the common name is empty"},
		"long common name":            {nil, devid.Subject(long, "", ""), "has 65 bytes"},
		"long serial number":          {nil, devid.Subject("x", long, ""), "has 65 bytes"},
		"serial number with a letter": {nil, devid.Subject("x", "SNü", ""), `'ü' at position 3`},
		"line end":                    {nil, devid.Subject("x\n", "", ""), "not printable"},
		"not UTF-8":                   {nil, devid.Subject("x\xff", "", ""), "not printable"},
	} {
		t.Run(name, func(t *testing.T) {
			if test.key == nil {
				test.key = pki.NewKey(t)
			}
			if _, err := devid.CSR(test.key, test.subject); err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want %q in it", err, test.text)
			}
		})
	}
}

func TestCommonNameOf64(t *testing.T) {
	der, err := devid.CSR(pki.NewKey(t), devid.Subject(strings.Repeat("0123456789abcdef", 4), "", ""))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || len(csr.Subject.CommonName) != 64 {
		t.Errorf("got %q: %v", csr.Subject.CommonName, err)
	}
}

func TestDPSName(t *testing.T) {
	for name, text := range map[string]string{
		"a":                           "",
		"0":                           "",
		"dev-1.example_2":             "",
		strings.Repeat("a", 64):       "",
		"":                            "it is empty",
		strings.Repeat("a", 65):       "65 characters",
		"Dev":                         `'D' at position 1`,
		"dev 1":                       `' ' at position 4`,
		"dev/1":                       `'/' at position 4`,
		"geräät":                      `'ä' at position 4`,
		"-dev":                        `'-' at position 1; the first`,
		"dev.":                        `'.' at position 4; the first`,
		"dev\n":                       `'\n' at position 4`,
		strings.Repeat("a", 63) + "-": `'-' at position 64`,
	} {
		err := devid.DPSName(name)
		if text == "" && err != nil || text != "" && (err == nil || !strings.Contains(err.Error(), text)) {
			t.Errorf("%q: got %v, want %q in it", name, err, text)
		}
	}
}

func TestSameKey(t *testing.T) {
	a, b, r := pki.NewKey(t), pki.NewKey(t), pki.NewRSAKey(t)
	if !devid.SameKey(a.Public(), a.Public()) || !devid.SameKey(r.Public(), r.Public()) {
		t.Error("a key differs from itself")
	}
	for _, pair := range [][2]crypto.PublicKey{{a.Public(), b.Public()}, {a.Public(), r.Public()}, {a.Public(), nil}, {nil, nil}, {"x", "x"}} {
		if devid.SameKey(pair[0], pair[1]) {
			t.Errorf("%T equals %T", pair[0], pair[1])
		}
	}
}
