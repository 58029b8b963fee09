package cmd

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"math/big"
	"slices"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// What an answer may hold: certs-only PKCS#7 (RFC 5652, section 5), and what it should not be.

func der(tag byte, contents ...[]byte) []byte {
	content := bytes.Join(contents, nil)
	return append(head(tag, len(content)), content...)
}

// head is what stands before a content of n bytes, up to 16 MiB.
func head(tag byte, n int) []byte {
	switch {
	case n < 0x80:
		return []byte{tag, byte(n)}
	case n < 1<<8:
		return []byte{tag, 0x81, byte(n)}
	case n < 1<<16:
		return []byte{tag, 0x82, byte(n >> 8), byte(n)}
	}
	return []byte{tag, 0x83, byte(n >> 16), byte(n >> 8), byte(n)}
}

var (
	oidData       = []byte{0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01}
	oidSignedData = []byte{0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02}
)

// certsOnly is a SignedData with these elements in the place of its certificates.
func certsOnly(certificates ...[]byte) []byte {
	return signedData(der(0x30, oidData), certificates...)
}

func signedData(content []byte, certificates ...[]byte) []byte {
	signed := der(0x30, []byte{2, 1, 1}, der(0x31), content, der(0xa0, certificates...), der(0x31))
	return der(0x30, oidSignedData, der(0xa0, signed))
}

func rawCertificates(certs []*x509.Certificate) [][]byte {
	var all [][]byte
	for _, c := range certs {
		all = append(all, c.Raw)
	}
	return all
}

func base64Lines(der []byte) []byte {
	text := base64.StdEncoding.EncodeToString(der)
	var b bytes.Buffer
	for line := range slices.Chunk([]byte(text), 64) {
		b.Write(line)
		b.WriteString("\r\n")
	}
	return b.Bytes()
}

// nested is an element in an element, and so on.
func nested(depth int, indefinite bool) []byte {
	if indefinite {
		return append(bytes.Repeat([]byte{0x30, 0x80}, depth), make([]byte, 2*depth)...)
	}
	// From the inside outwards, and so backwards.
	var out []byte
	for range depth {
		before := head(0x30, len(out))
		slices.Reverse(before)
		out = append(out, before...)
	}
	slices.Reverse(out)
	return out
}

// largeExtension gives a certificate an extension that nobody knows.
func largeExtension(size int) pki.Change {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, size)})
	}
}

// manyNames gives a certificate alternative names of three bytes, each of which takes
// fifty times as much memory when it is parsed.
func manyNames(n int) pki.Change {
	return func(c *x509.Certificate) {
		names := bytes.Repeat([]byte{0x86, 1, 'a'}, n)
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: der(0x30, names)})
	}
}

// largeSerial gives a certificate a serial number of so many bytes.
func largeSerial(size int) pki.Change {
	return func(c *x509.Certificate) { c.SerialNumber = new(big.Int).Lsh(big.NewInt(1), uint(8*size-2)) }
}

// ofRSA is a CA certificate for an RSA key that nobody has: its modulus is a number
// like any other. To verify a signature with it takes the longer the larger it is.
func ofRSA(t testing.TB, issuer *pki.CA, bits, exponent int) []byte {
	t.Helper()
	modulus := make([]byte, bits/8)
	rand.Read(modulus)
	modulus[0] |= 0x80
	modulus[len(modulus)-1] |= 1
	return caFor(t, issuer, &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: exponent})
}

func caFor(t testing.TB, issuer *pki.CA, key any) []byte {
	t.Helper()
	return issuer.Issue(t, key, pkix.Name{CommonName: issuer.Cert.Subject.CommonName}, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
		c.SubjectKeyId = issuer.Cert.SubjectKeyId
	}).Raw
}

// padded is a certificate with a signature of another size, as a key of that size would make it. It takes
// a verifier all its time to find out that it did not.
func padded(t testing.TB, cert *x509.Certificate, bits int) []byte {
	t.Helper()
	var whole asn1.RawValue
	if _, err := asn1.Unmarshal(cert.Raw, &whole); err != nil {
		t.Fatal(err)
	}
	var signed, algorithm asn1.RawValue
	rest, err := asn1.Unmarshal(whole.Bytes, &signed)
	if err == nil {
		_, err = asn1.Unmarshal(rest, &algorithm)
	}
	if err != nil {
		t.Fatal(err)
	}
	return der(0x30, signed.FullBytes, algorithm.FullBytes, der(3, make([]byte, bits/8+1)))
}

// ofCurve is a CA certificate for a key of a curve that a TPM has not.
func ofCurve(t testing.TB, issuer *pki.CA, curve elliptic.Curve) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return caFor(t, issuer, key.Public())
}

// ofUnknownKey is a CA certificate whose key is of an algorithm that nobody knows.
func ofUnknownKey(t testing.TB, issuer *pki.CA) []byte {
	t.Helper()
	raw := caFor(t, issuer, pki.NewKey(t).Public())
	// id-ecPublicKey, 1.2.840.10045.2.1
	return bytes.Replace(raw, []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1}, []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 0x7f}, 1)
}

// loop is two CAs, each of which certifies the other, in many copies with other serial numbers.
func loop(t testing.TB, n int) [][]byte {
	t.Helper()
	a, b := pki.NewCA(t, "A", nil), pki.NewCA(t, "B", nil)
	var all [][]byte
	for range n / 2 {
		all = append(all, pki.NewCAWithKey(t, "A", a.Key, b).Cert.Raw, pki.NewCAWithKey(t, "B", b.Key, a).Cert.Raw)
	}
	return all
}
