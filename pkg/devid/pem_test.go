package devid_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

func TestParsePEM(t *testing.T) {
	root := pki.NewCA(t, "root", nil)
	leaf := root.Issue(t, pki.NewKey(t).Public(), pkix.Name{CommonName: "x"})
	both := devid.EncodePEM([]*x509.Certificate{leaf, root.Cert})
	first, second := devid.EncodePEM([]*x509.Certificate{leaf}), devid.EncodePEM([]*x509.Certificate{root.Cert})

	for name, test := range map[string]struct {
		data []byte
		text string // of the error
	}{
		"two":           {both, ""},
		"text around":   {bytes.Join([][]byte{[]byte("subject=x\n"), first, []byte("\nissuer=y\n"), second, []byte("end\n")}, nil), ""},
		"CRLF":          {bytes.ReplaceAll(both, []byte("\n"), []byte("\r\n")), ""},
		"empty":         {nil, "there is no PEM certificate"},
		"DER":           {leaf.Raw, "there is no PEM certificate"},
		"cut off":       {both[:len(both)-30], "1 of 2 are damaged or cut off"},
		"damaged first": {append(bytes.Replace(first, []byte("MII"), []byte("M!!"), 1), second...), "1 of 2 are damaged"},
		"private key":   {append(both, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"...), `"PRIVATE KEY"`},
		"no X.509":      {[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "number 1: "},
		"huge":          {bytes.Repeat([]byte("x"), 1<<20+1), "more than"},
		"many":          {bytes.Repeat(first, 501), "more than 500"},
	} {
		t.Run(name, func(t *testing.T) {
			certs, err := devid.ParsePEM(test.data)
			if test.text != "" {
				if err == nil || !strings.Contains(err.Error(), test.text) {
					t.Errorf("got %v, want %q in it", err, test.text)
				}
				return
			}
			if err != nil || len(certs) != 2 || !certs[0].Equal(leaf) || !certs[1].Equal(root.Cert) {
				t.Errorf("got %d certificates: %v", len(certs), err)
			}
		})
	}

	got, rest, err := devid.ParseChainPEM(both)
	if err != nil || !got.Equal(leaf) || len(rest) != 1 {
		t.Errorf("the chain: %v", err)
	}
	if got := devid.Fingerprint(leaf); len(got) != 64 || got == devid.Fingerprint(root.Cert) {
		t.Errorf("the fingerprint: %s", got)
	}
}
