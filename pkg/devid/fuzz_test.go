package devid_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/limit"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

func FuzzParsePEM(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN X-----\nA: b\n\n-----END X-----"))
	f.Fuzz(func(t *testing.T, data []byte) {
		defer limit.Time(t, 5*time.Second)()
		certs, err := devid.ParsePEM(data)
		if err != nil {
			return
		}
		again, err := devid.ParsePEM(devid.EncodePEM(certs))
		if err != nil || len(again) != len(certs) {
			t.Errorf("what was read cannot be read again: %v", err)
		}
	})
}

// fixedKey is a key that is the same in every process of a fuzzer, so that what one of them has
// found is signed in the others too.
func fixedKey(f *testing.F, name string) *ecdsa.PrivateKey {
	f.Helper()
	scalar := sha256.Sum256([]byte(name))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar[:])
	if err != nil {
		f.Fatal(err)
	}
	return key
}

// FuzzCheck: of whatever a CA sends, only a certificate for our key, in our name, that our CA has
// signed is accepted, and what was accepted is accepted again.
func FuzzCheck(f *testing.F) {
	root := pki.NewCAWithKey(f, "root", fixedKey(f, "root"), nil)
	issuing := pki.NewCAWithKey(f, "issuing", fixedKey(f, "issuing"), root)
	key := fixedKey(f, "device").Public()
	subject := pkix.Name{CommonName: "dev-1"}
	leaf := issuing.Issue(f, key, subject)
	other := issuing.Issue(f, fixedKey(f, "other").Public(), subject)
	for _, list := range [][]*x509.Certificate{
		{leaf, issuing.Cert},
		{issuing.Cert, leaf, root.Cert},
		{leaf, leaf, issuing.Cert},
		{other, issuing.Cert, leaf},
		{leaf},
		{other, issuing.Cert},
		{pki.NewCAWithKey(f, "loop", fixedKey(f, "root"), issuing).Cert, issuing.Cert, leaf},
	} {
		f.Add(rawOf(list))
	}
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, der []byte) {
		if len(der) > 64<<10 {
			return
		}
		defer limit.Time(t, 5*time.Second)()
		certs, err := x509.ParseCertificates(der)
		if err != nil {
			return
		}
		want := devid.Expect{Key: key, Subject: subject, ClientAuth: true, Roots: []*x509.Certificate{root.Cert}, At: at}
		chain, err := devid.Check(certs, want)
		if err != nil {
			if len(err.Error()) > 16<<10 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		path := append([]*x509.Certificate{chain.Leaf}, chain.Intermediates...)
		if !devid.SameKey(chain.Leaf.PublicKey, key) || chain.Leaf.Subject.CommonName != "dev-1" || chain.Leaf.IsCA {
			t.Errorf("accepted %v", chain.Leaf.Subject)
		}
		for i, c := range path {
			if !slices.ContainsFunc(certs, c.Equal) && !c.Equal(issuing.Cert) {
				t.Errorf("number %d of the chain was not in the answer", i)
			}
			parent := root.Cert
			if i+1 < len(path) {
				parent = path[i+1]
			}
			if err := c.CheckSignatureFrom(parent); err != nil {
				t.Errorf("number %d of the chain: %v", i, err)
			}
		}
		leaf, rest, err := devid.ParseChainPEM(chain.PEM())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := devid.Check(append([]*x509.Certificate{leaf}, rest...), want); err != nil {
			t.Errorf("what was kept is not accepted any more: %v", err)
		}
	})
}

func rawOf(certs []*x509.Certificate) []byte {
	var all []byte
	for _, c := range certs {
		all = append(all, c.Raw...)
	}
	return all
}

// FuzzSameCSR: a request that was kept is sent again only if it is one for our key and name.
func FuzzSameCSR(f *testing.F) {
	key := fixedKey(f, "device")
	subject := pkix.Name{CommonName: "dev-1"}
	for _, name := range []string{"dev-1", "dev-2"} {
		csr, err := devid.CSR(key, pkix.Name{CommonName: name})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(csr)
		f.Add(csr[:len(csr)-1])
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		if len(der) > 64<<10 {
			return
		}
		defer limit.Time(t, 5*time.Second)()
		if !devid.SameCSR(der, key.Public(), subject) {
			return
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil || csr.CheckSignature() != nil || csr.Subject.CommonName != "dev-1" || !devid.SameKey(csr.PublicKey, key.Public()) {
			t.Errorf("it would be sent: %v", err)
		}
	})
}

var dpsName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$`)

// FuzzDPSName holds the check against the pattern of the documentation.
func FuzzDPSName(f *testing.F) {
	for _, s := range []string{"board-1", "", "-a", "a.", "A", "é", "a\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := devid.DPSName(s) == nil, dpsName.MatchString(s); got != want {
			t.Errorf("%q: %t, want %t", s, got, want)
		}
	})
}
