package est

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

const (
	maxBody         = 1 << 20 // bytes of an answer
	maxCertificates = 100     // in an answer; four are many
	maxDepth        = 32      // of nested elements; a certificate has less than ten

	// maxDER is for the certificates of an answer together, in bytes. Three bytes of a name become more than a
	// hundred when crypto/x509 parses them, and a device has little memory.
	maxDER = 256 << 10
	// maxRSA is that of crypto/tls, in bits. The time of a verification grows with the third power of the
	// size, and nothing interrupts it: a key that fits into an answer would take hours.
	maxRSA = 8192
)

// decode reads the body of an answer: certs-only CMS in base64, or in PEM.
func decode(body []byte) ([]*x509.Certificate, error) {
	der, err := decodeText(bytes.TrimSpace(body))
	if err != nil {
		return nil, err
	}
	return parseCertsOnly(der)
}

func decodeText(body []byte) ([]byte, error) {
	if bytes.HasPrefix(body, []byte("-----BEGIN")) {
		block, rest := pem.Decode(body)
		switch {
		case block == nil:
			return nil, errors.New("its PEM block is damaged")
		case block.Type != "PKCS7" && block.Type != "CMS":
			return nil, fmt.Errorf("its PEM block is a %q, not a PKCS7", printable(block.Type))
		case len(bytes.TrimSpace(rest)) > 0:
			return nil, errors.New("something follows its PEM block")
		}
		return block.Bytes, nil
	}
	der, err := base64.StdEncoding.AppendDecode(nil, withoutSpace(body))
	if err != nil {
		return nil, errors.New("it is not base64")
	}
	return der, nil
}

// withoutSpace is the text in one line. It makes no list of words, of which a hostile text has half a million.
func withoutSpace(text []byte) []byte {
	return slices.DeleteFunc(bytes.Clone(text), func(c byte) bool { return bytes.IndexByte([]byte(" \t\r\n\f\v"), c) >= 0 })
}

// Tags of the elements that we look at, with the bit for "constructed".
const (
	tagOID      = 0x06
	tagSequence = 0x30
	tagContext0 = 0xa0
	constructed = 0x20
)

// oidSignedData is 1.2.840.113549.1.7.2, id-signedData of RFC 5652, section 5.1.
var oidSignedData = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02}

// parseCertsOnly reads the certificates of
//
//	ContentInfo ::= SEQUENCE { contentType OID, content [0] EXPLICIT SignedData }
//	SignedData  ::= SEQUENCE { version, digestAlgorithms, encapContentInfo,
//	                           certificates [0] IMPLICIT SET OF Certificate, crls, signerInfos }
//
// (RFC 5652, sections 3 and 5.1). No signature is looked at, for there is none: the certificates prove themselves.
func parseCertsOnly(der []byte) ([]*x509.Certificate, error) {
	info, err := only(der, tagSequence)
	if err != nil {
		return nil, fmt.Errorf("it is not a PKCS#7 structure: %w", err)
	}
	elements, err := children(info.content)
	if err != nil {
		return nil, fmt.Errorf("it is not a PKCS#7 structure: %w", err)
	}
	if len(elements) != 2 || elements[0].tag != tagOID || elements[1].tag != tagContext0 {
		return nil, errors.New("it is not a PKCS#7 structure")
	}
	if !bytes.Equal(elements[0].content, oidSignedData) {
		return nil, errors.New("its PKCS#7 content is not SignedData")
	}
	signed, err := only(elements[1].content, tagSequence)
	if err != nil {
		return nil, fmt.Errorf("its SignedData is damaged: %w", err)
	}
	if elements, err = children(signed.content); err != nil {
		return nil, fmt.Errorf("its SignedData is damaged: %w", err)
	}
	i := slices.IndexFunc(elements, func(e element) bool { return e.tag == tagContext0 })
	if i < 0 {
		return nil, errors.New("its SignedData holds no certificate")
	}
	return parseCertificates(elements[i].content)
}

func parseCertificates(set []byte) ([]*x509.Certificate, error) {
	if len(set) > maxDER {
		return nil, fmt.Errorf("its certificates have more than %d bytes", maxDER)
	}
	var certs []*x509.Certificate
	for len(set) > 0 {
		e, rest, err := next(set, 0)
		if err != nil {
			return nil, fmt.Errorf("certificate number %d is damaged: %w", len(certs)+1, err)
		}
		if len(certs) == maxCertificates {
			return nil, fmt.Errorf("it holds more than %d certificates", maxCertificates)
		}
		cert, err := x509.ParseCertificate(e.raw)
		if err != nil {
			return nil, fmt.Errorf("certificate number %d cannot be read: %w", len(certs)+1, err)
		}
		if key, ok := cert.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxRSA {
			return nil, fmt.Errorf("certificate number %d is for an RSA key of %d bits, and %d are allowed", len(certs)+1, key.N.BitLen(), maxRSA)
		}
		certs, set = append(certs, cert), rest
	}
	if len(certs) == 0 {
		return nil, errors.New("its SignedData holds no certificate")
	}
	return certs, nil
}

// An element is one tag, length and value of BER.
type element struct {
	tag          byte
	raw, content []byte
}

// only is the one element that b consists of.
func only(b []byte, tag byte) (element, error) {
	e, rest, err := next(b, 0)
	switch {
	case err != nil:
		return e, err
	case len(rest) > 0:
		return e, errors.New("something follows its end")
	case e.tag != tag:
		return e, fmt.Errorf("tag %#02x where %#02x belongs", e.tag, tag)
	}
	return e, nil
}

func children(b []byte) ([]element, error) {
	var all []element
	for len(b) > 0 {
		if len(all) == 8 { // SignedData has six at most
			return nil, errors.New("too many elements")
		}
		e, rest, err := next(b, 0)
		if err != nil {
			return nil, err
		}
		all, b = append(all, e), rest
	}
	return all, nil
}

// next cuts the first element off b. CMS may be BER (RFC 5652, section 1), and servers in Java write its indefinite
// lengths, whose end is found by going through all that is inside.
func next(b []byte, depth int) (e element, rest []byte, err error) {
	if depth > maxDepth {
		return e, nil, errors.New("elements are nested too deeply")
	}
	if len(b) < 2 {
		return e, nil, errors.New("it is cut off")
	}
	if b[0]&0x1f == 0x1f {
		return e, nil, errors.New("a tag of several bytes, which no certificate has")
	}
	e.tag = b[0]
	if b[1] == 0x80 {
		return indefinite(b, depth)
	}
	header, length := 2, int(b[1])
	if b[1] > 0x80 {
		n := int(b[1] & 0x7f)
		if n > 3 || len(b) < 2+n { // three bytes are enough for 16 MiB, and fit an int of 32 bits
			return e, nil, errors.New("a length that is too large")
		}
		length = 0
		for _, digit := range b[2 : 2+n] {
			length = length<<8 | int(digit)
		}
		header += n
	}
	if length > len(b)-header {
		return e, nil, errors.New("it is cut off")
	}
	end := header + length
	e.raw, e.content = b[:end], b[header:end]
	return e, b[end:], nil
}

func indefinite(b []byte, depth int) (e element, rest []byte, err error) {
	if b[0]&constructed == 0 {
		return e, nil, errors.New("an indefinite length where none may be")
	}
	for rest = b[2:]; ; {
		if bytes.HasPrefix(rest, []byte{0, 0}) {
			end := len(b) - len(rest)
			return element{tag: b[0], raw: b[:end+2], content: b[2:end]}, rest[2:], nil
		}
		if _, rest, err = next(rest, depth+1); err != nil {
			return e, nil, err
		}
	}
}
