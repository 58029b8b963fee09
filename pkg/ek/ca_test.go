package ek_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/ek"
)

// now is inside the validity of every certificate of the tests, made or real.
var now = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

var (
	oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidEKU = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
)

// ca is a CA for tests.
type ca struct {
	Cert *x509.Certificate
	key  crypto.Signer
}

type mod func(*x509.Certificate)

func years(from, to int) mod {
	return func(c *x509.Certificate) {
		c.NotBefore = time.Date(from, 1, 1, 0, 0, 0, 0, time.UTC)
		c.NotAfter = time.Date(to, 1, 1, 0, 0, 0, 0, time.UTC)
	}
}

func extension(id asn1.ObjectIdentifier, critical bool, value []byte) mod {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: id, Critical: critical, Value: value})
	}
}

// withSAN replaces the subject alternative name; with nil there's none.
func withSAN(critical bool, value []byte) mod {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = nil
		if value != nil {
			extension(oidSAN, critical, value)(c)
		}
	}
}

// newCA returns a CA that parent signed, or a self-signed one.
func newCA(t testing.TB, name string, parent *ca, mods ...mod) *ca {
	t.Helper()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		KeyUsage:              x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		SubjectKeyId:          []byte(name),
	}
	years(2015, 2035)(template)
	key := newP256(t)
	if parent == nil {
		parent = &ca{Cert: template, key: key}
	}
	return &ca{Cert: parent.sign(t, template, key.Public(), mods), key: key}
}

// ek returns the DER of an EK certificate for a new P-256 key.
func (a *ca) ek(t testing.TB, mods ...mod) []byte {
	t.Helper()
	return a.ekFor(t, newP256(t).Public(), mods...)
}

func (a *ca) ekFor(t testing.TB, key crypto.PublicKey, mods ...mod) []byte {
	t.Helper()
	template := &x509.Certificate{
		KeyUsage:              x509.KeyUsageKeyAgreement,
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{oidEKU},
		BasicConstraintsValid: true,
		IssuingCertificateURL: []string{"http://ca.example/issuer.crt"},
	}
	years(2018, 2028)(template)
	withSAN(true, tpmSAN(t, "id:49465800", "SLB9670", "id:00070055"))(template)
	return a.sign(t, template, key, mods).Raw
}

func (a *ca) sign(t testing.TB, template *x509.Certificate, key crypto.PublicKey, mods []mod) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = serial
	for _, m := range mods {
		m(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, key, a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// tpmSAN makes GeneralNames with a directoryName, one attribute in each RDN. Values need not be strings.
func tpmSAN(t testing.TB, values ...any) []byte {
	t.Helper()
	var dn pkix.RDNSequence
	for i, v := range values {
		dn = append(dn, pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, i + 1}, Value: v}})
	}
	name := marshal(t, dn)
	return marshal(t, []asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func mustParse(t testing.TB, blob []byte) *ek.Certificate {
	t.Helper()
	c, err := ek.Parse(blob)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newP256(t testing.TB) *ecdsa.PrivateKey { return newECDSA(t, elliptic.P256()) }

func newECDSA(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// rsa2048 is the one RSA key of the tests, because making one takes long.
var rsa2048 = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})
