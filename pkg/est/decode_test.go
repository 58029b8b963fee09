package est

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"os/exec"
	"strings"
	"testing"

	"github.com/smallstep/pkcs7"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// tlv is one element of DER with a content of up to 64 KiB.
func tlv(tag byte, parts ...[]byte) []byte {
	content := bytes.Join(parts, nil)
	n := len(content)
	header := []byte{tag, byte(n)}
	if n >= 0x80 {
		header = []byte{tag, 0x82, byte(n >> 8), byte(n)}
	}
	return append(header, content...)
}

// open is one element of BER with an indefinite length.
func open(tag byte, parts ...[]byte) []byte {
	return append(append([]byte{tag, 0x80}, bytes.Join(parts, nil)...), 0, 0)
}

func TestDecode(t *testing.T) {
	cert := pki.NewCA(t, "x", nil).Cert
	der, err := pkcs7.DegenerateCertificate(append(bytes.Clone(cert.Raw), cert.Raw...))
	if err != nil {
		t.Fatal(err)
	}
	plain := base64.StdEncoding.EncodeToString(der)
	lines := string(encode(der))

	oid := tlv(tagOID, oidSignedData)
	data := tlv(tagSequence, tlv(tagOID, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01}))
	version, set := tlv(0x02, []byte{1}), tlv(0x31)
	indefinite := open(tagSequence, oid, open(tagContext0, open(tagSequence, version, set, open(tagSequence, data[2:]), open(tagContext0, cert.Raw, cert.Raw), set)))
	signed := func(parts ...[]byte) []byte {
		return tlv(tagSequence, oid, tlv(tagContext0, tlv(tagSequence, parts...)))
	}
	b64 := func(der []byte) string { return base64.StdEncoding.EncodeToString(der) }

	for name, test := range map[string]struct{ body, err string }{
		"one line":          {plain, ""},
		"lines":             {lines, ""},
		"CRLF":              {strings.ReplaceAll(lines, "\n", "\r\n"), ""},
		"leading lines":     {"\r\n\r\n" + lines + "\r\n", ""},
		"PEM":               {string(pem.EncodeToMemory(&pem.Block{Type: "PKCS7", Bytes: der})), ""},
		"PEM of OpenSSL 3":  {string(pem.EncodeToMemory(&pem.Block{Type: "CMS", Bytes: der})), ""},
		"own encoder":       {b64(signed(version, set, data, tlv(tagContext0, cert.Raw, cert.Raw), set)), ""},
		"indefinite length": {b64(indefinite), ""},

		"empty":                 {"", "it is cut off"},
		"HTML":                  {"<html>", "it is not base64"},
		"half":                  {plain[:len(plain)/2&^3], "it is cut off"},
		"PEM damaged":           {"-----BEGIN PKCS7-----\nMII", "its PEM block is damaged"},
		"PEM of a certificate":  {string(pki.PEM(cert)), `"CERTIFICATE", not a PKCS7`},
		"two PEM blocks":        {strings.Repeat(string(pem.EncodeToMemory(&pem.Block{Type: "PKCS7", Bytes: der})), 2), "something follows"},
		"bare certificate":      {b64(cert.Raw), "it is not a PKCS#7 structure"},
		"trailing bytes":        {b64(append(bytes.Clone(der), 0)), "something follows"},
		"data":                  {b64(tlv(tagSequence, tlv(tagOID, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01}), tlv(tagContext0))), "is not SignedData"},
		"no certificates field": {b64(signed(version, set, data, set)), "holds no certificate"},
		"no certificate":        {b64(signed(version, set, data, tlv(tagContext0), set)), "holds no certificate"},
		"no X.509":              {b64(signed(version, set, data, tlv(tagContext0, cert.Raw, tlv(tagSequence)), set)), "number 2 cannot be read"},
		"many":                  {b64(signed(version, set, data, tlv(tagContext0, bytes.Repeat(cert.Raw, 101)), set)), "more than 100"},

		// What makes general decoders recurse, loop or panic.
		"deep":                        {b64(bytes.Repeat([]byte{0x30, 0x80}, 300<<10)), "nested too deeply"},
		"exponential":                 {b64(append(bytes.Repeat([]byte{0x30, 0x06, 0x30, 0x02}, 100), make([]byte, 40)...)), "something follows"},
		"child longer than parent":    {b64(bytes.Repeat([]byte{0x30, 0x02}, 1000)), "something follows"},
		"length of 2 GiB":             {b64([]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff, 0}), "a length that is too large"},
		"no end":                      {b64([]byte{0x30, 0x80, 0x06, 0x00}), "it is cut off"},
		"primitive without length":    {b64([]byte{0x04, 0x80, 0, 0}), "an indefinite length where none may be"},
		"long tag":                    {b64([]byte{0x3f, 0x81, 0x01, 0x00}), "a tag of several bytes"},
		"many elements in SignedData": {b64(signed(bytes.Repeat(version, 9))), "too many elements"},
	} {
		t.Run(name, func(t *testing.T) {
			certs, err := decode([]byte(test.body))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want %q in it", err, test.err)
				}
				return
			}
			if err != nil || len(certs) != 2 || !certs[0].Equal(cert) {
				t.Errorf("got %d certificates: %v", len(certs), err)
			}
		})
	}
}

// TestDecodeOpenSSL reads what a stranger wrote.
func TestDecodeOpenSSL(t *testing.T) {
	program, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatalf("%v: scripts/deps installs it", err)
	}
	cert := pki.NewCA(t, "x", nil).Cert
	cmd := exec.Command(program, "crl2pkcs7", "-nocrl", "-certfile", "/dev/stdin")
	cmd.Stdin = bytes.NewReader(pki.PEM(cert))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	certs, err := decode(out)
	if err != nil || len(certs) != 1 || !certs[0].Equal(cert) {
		t.Errorf("got %d certificates: %v", len(certs), err)
	}
}
