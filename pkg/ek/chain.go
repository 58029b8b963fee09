package ek

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
)

const (
	maxChainSize  = 64 << 10 // bytes; known chains have less than 8 KiB
	maxChainCount = 32       // certificates; known chains have less than 6

	// maxRSA is the size of an issuer's key in bits; known ones have 4096 at most. The time of a verification grows with
	// the third power of it, and one that fills the chain's indices would take minutes.
	maxRSA = 8192
)

// ParseChain takes the contents of the chain's indices in ascending order and returns the
// certificates in them. A certificate may begin in one index and end in the next. Padding, that is bytes
// of one value other than 0x30, is skipped after each certificate.
//
// On error it returns the certificates in front of what could not be parsed as well. They are only
// intermediates, whose worth shows in [Verify]. Every error is a [MalformedError].
func ParseChain(blobs ...[]byte) ([]*x509.Certificate, error) {
	broken := func(reason string, err error) error {
		return &MalformedError{What: "EK certificate chain", Reason: reason, Err: err}
	}
	size := 0
	for _, b := range blobs {
		size += len(b)
	}
	if size > maxChainSize {
		return nil, broken(fmt.Sprintf("%d bytes are more than the %d that are allowed", size, maxChainSize), nil)
	}

	var chain []*x509.Certificate
	for rest := skipPadding(bytes.Join(blobs, nil)); len(rest) > 0; rest = skipPadding(rest) {
		if len(chain) == maxChainCount {
			return chain, broken(fmt.Sprintf("there are more than %d certificates", maxChainCount), nil)
		}
		der, next, err := cutDER(rest)
		if err != nil {
			return chain, broken(fmt.Sprintf("no certificate begins after number %d", len(chain)), err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return chain, broken(fmt.Sprintf("number %d is no X.509 certificate", len(chain)+1), err)
		}
		if key, ok := cert.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxRSA {
			return chain, broken(fmt.Sprintf("number %d is for an RSA key of %d bits, and %d are allowed", len(chain)+1, key.N.BitLen(), maxRSA), nil)
		}
		chain, rest = append(chain, cert), next
	}
	return chain, nil
}

// skipPadding returns b from its first byte that differs from the others before it, or b itself if it begins
// with the tag of a sequence. A blank b, of whatever byte, is all padding.
func skipPadding(b []byte) []byte {
	const sequence = 0x30
	if repeats(b) {
		return nil
	}
	if len(b) == 0 || b[0] == sequence {
		return b
	}
	// Not bytes.TrimLeft, for which all bytes that are no UTF-8 are one character.
	return b[slices.IndexFunc(b, func(c byte) bool { return c != b[0] }):]
}
