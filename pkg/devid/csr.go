package devid

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
)

// CSR makes a PKCS#10 request (RFC 2986) in DER, signed by the key that it is for. The key is ECC P-256
// (ECDSA with SHA-256) or RSA of at least 2048 bits (PKCS#1 v1.5 with SHA-256: not PSS, whose salt
// length many TPMs choose differently from what X.509 expects).
func CSR(key crypto.Signer, subject pkix.Name) ([]byte, error) {
	algorithm, err := signatureAlgorithm(key.Public())
	if err == nil {
		err = checkSubject(subject)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make the certificate request: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:            subject,
		SignatureAlgorithm: algorithm,
	}, key)
	if err != nil {
		return nil, fmt.Errorf("cannot sign the certificate request of %q: %w", subject.CommonName, err)
	}
	return der, nil
}

func signatureAlgorithm(public crypto.PublicKey) (x509.SignatureAlgorithm, error) {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return 0, fmt.Errorf("the key is on curve %s, and only P-256 is supported", k.Curve.Params().Name)
		}
		return x509.ECDSAWithSHA256, nil
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < 2048 {
			return 0, fmt.Errorf("the RSA key has %d bits, and at least 2048 are needed", bits)
		}
		return x509.SHA256WithRSA, nil
	}
	return 0, fmt.Errorf("a key of type %T is not supported", public)
}

// SameCSR says whether a request that was kept asks for this key and subject and is signed by the key.
// Such a one is sent again, byte for byte, so that a server which answered "ask again later" knows it
// (RFC 7030, section 4.2.3).
func SameCSR(der []byte, public crypto.PublicKey, subject pkix.Name) bool {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || csr.CheckSignature() != nil || !SameKey(csr.PublicKey, public) {
		return false
	}
	want, err := asn1.Marshal(subject.ToRDNSequence())
	return err == nil && bytes.Equal(csr.RawSubject, want)
}

// SameKey says whether two public keys are equal. Keys of types that cannot be compared are not.
func SameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && b != nil && k.Equal(b)
}
