package ek

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
)

// maxBlob bounds what is parsed as a certificate, in bytes. Real ones have 700 to 1600, and an NV index of
// most TPMs ends at 2048.
const maxBlob = 16 << 10

// Certificate is an EK certificate that has been parsed, not verified.
type Certificate struct {
	// X509 is the certificate as crypto/x509 parsed it. Its UnhandledCriticalExtensions still
	// contain the subject alternative name; Verify deals with that.
	X509 *x509.Certificate

	Key     crypto.PublicKey // *rsa.PublicKey or *ecdsa.PublicKey; X509.PublicKey is nil for id-RSAES-OAEP, this isn't
	Kind    KeyKind          // of Key; "" if the size or curve is none of the TCG's
	Names   Names            // what the certificate says about the TPM; zero if it's missing or malformed
	Padding int              // number of bytes after the certificate that were cut off
}

// Parse takes an EK certificate as it lies in NV: it removes what vendors put around the DER and parses
// it. Every error is a [MalformedError].
func Parse(blob []byte) (*Certificate, error) {
	if len(blob) > maxBlob {
		return nil, malformed(fmt.Sprintf("%d bytes are more than the %d that are allowed", len(blob), maxBlob), nil)
	}
	if len(blob) == 0 {
		return nil, malformed("it is empty", nil)
	}
	if repeats(blob) {
		return nil, malformed(fmt.Sprintf("the index is blank: nothing but 0x%02x", blob[0]), nil)
	}
	data, err := cutHeader(blob)
	if err != nil {
		return nil, err
	}
	der, tail, err := cutDER(data)
	if err != nil {
		return nil, malformed("no DER sequence begins where the certificate should", err)
	}
	if len(tail) > 0 && !repeats(tail) {
		return nil, malformed(fmt.Sprintf("%d bytes after the certificate are not padding: they differ", len(tail)), nil)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, malformed("it is no X.509 certificate", err)
	}
	key, err := publicKey(cert)
	if err != nil {
		return nil, malformed("its public key cannot be parsed", err)
	}
	// Malformed names are Verify's to judge, because it depends on whether the extension is critical.
	names, _ := parseNames(cert)
	return &Certificate{X509: cert, Key: key, Kind: KindOf(key), Names: names, Padding: len(tail)}, nil
}

func malformed(reason string, err error) error {
	return &MalformedError{What: "EK certificate", Reason: reason, Err: err}
}

// Tags of TCG PC Client Specific Implementation Specification 1.21, clause 7.3.2.
const (
	tagStoredCert = 0x1001 // TCG_TAG_PCCLIENT_STORED_CERT, before the type and the size
	tagFullCert   = 0x1002 // TCG_TAG_PCCLIENT_FULL_CERT, the first two of the bytes that the size counts
	fullCert      = 0      // the only type that holds a whole certificate
)

// cutHeader removes the TCG's header of five or seven bytes, if there is one. No DER sequence
// begins with 0x10, so that there's no ambiguity. What lies behind the size that the header says is
// left in place: it's padding, and judged as such.
func cutHeader(b []byte) ([]byte, error) {
	if len(b) < 5 || binary.BigEndian.Uint16(b) != tagStoredCert {
		return b, nil
	}
	if b[2] != fullCert {
		return nil, malformed(fmt.Sprintf("its TCG header says type %d, not that of a full certificate", b[2]), nil)
	}
	size := int(binary.BigEndian.Uint16(b[3:]))
	b = b[5:]
	if size > len(b) {
		return nil, malformed(fmt.Sprintf("its TCG header says %d bytes, and %d follow", size, len(b)), nil)
	}
	if len(b) >= 2 && binary.BigEndian.Uint16(b) == tagFullCert {
		b, size = b[2:], size-2
	}
	if der, _, err := cutDER(b); err == nil && len(der) > size {
		return nil, malformed(fmt.Sprintf("its TCG header says %d bytes, and the certificate has %d", size, len(der)), nil)
	}
	return b, nil
}

// cutDER splits b behind the DER sequence with which it begins.
func cutDER(b []byte) (der, rest []byte, err error) {
	var outer asn1.RawValue
	rest, err = asn1.Unmarshal(b, &outer)
	if err != nil {
		return nil, nil, err
	}
	if outer.Class != asn1.ClassUniversal || outer.Tag != asn1.TagSequence || !outer.IsCompound {
		return nil, nil, fmt.Errorf("it begins with the byte 0x%02x, not with a sequence", b[0])
	}
	return outer.FullBytes, rest, nil
}

// repeats tells whether all bytes of b are the same.
func repeats(b []byte) bool {
	return len(b) > 0 && bytes.Count(b, b[:1]) == len(b)
}

// RFC 8017, appendix A.2.1. Vendors used it to say that the key only decrypts.
var oidRSAESOAEP = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}

// publicKey returns the certified key, also that of an algorithm which crypto/x509 doesn't parse
// because no signature of TLS needs it.
func publicKey(cert *x509.Certificate) (crypto.PublicKey, error) {
	switch key := cert.PublicKey.(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey:
		return key, nil
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &spki); err != nil {
		return nil, err
	} else if len(rest) > 0 {
		return nil, errors.New("trailing data")
	}
	if !spki.Algorithm.Algorithm.Equal(oidRSAESOAEP) {
		return nil, fmt.Errorf("its algorithm %s is neither RSA nor that of an elliptic curve", spki.Algorithm.Algorithm)
	}
	return x509.ParsePKCS1PublicKey(spki.Key.RightAlign())
}
