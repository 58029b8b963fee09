package devid

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Expect is what a certificate must be.
type Expect struct {
	// Key is the public key in the device.
	Key crypto.PublicKey
	// Subject is the name that was asked for.
	Subject pkix.Name
	// AnySubject lets the CA choose the name. If CommonName is set, that attribute must be equal all the same.
	AnySubject bool
	CommonName string
	// ClientAuth demands that the certificate can be used by a TLS client: an LDevID, an operational one.
	ClientAuth bool
	// NoExpiry expects the notAfter of an IDevID, and warns if it's another.
	NoExpiry bool
	// Outlives takes a certificate whose CAs have ended since they issued it, with a warning: one without an end, such
	// as an IDevID, outlives every CA, and nothing can renew it.
	Outlives bool
	// Roots are the certificates of the CA that is trusted; see [Anchors].
	Roots []*x509.Certificate
	// At is when the certificate is judged; the zero time is now. Whoever calls knows how far the
	// clock can be trusted.
	At time.Time
}

// Chain is a certificate that is as it must be, and the way to its root.
type Chain struct {
	Leaf *x509.Certificate
	// Intermediates are the CAs of the path from the issuer upwards, without a self-signed root, which
	// whoever verifies has to have already.
	Intermediates []*x509.Certificate
	// Roots are the anchors by which the chain was judged.
	Roots []*x509.Certificate
	// Warnings say what is lawful but probably not meant.
	Warnings []string
}

// noExpiry is the notAfter of a certificate without a well-defined end (RFC 5280, section 4.1.2.5).
var noExpiry = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// NoExpiry is the notAfter that 802.1AR-2018 (clause 8) wants of an IDevID: 99991231235959Z.
func NoExpiry() time.Time { return noExpiry }

// Check finds the certificate for our key among those that a CA sent, in whatever order, or that were
// kept, and checks that it is as it must be. The package documentation says which errors there are.
func Check(certs []*x509.Certificate, want Expect) (*Chain, error) {
	leaf, err := pick(certs, want.Key)
	if err != nil {
		return nil, fmt.Errorf("cannot accept the certificate: %w", err)
	}
	chain, err := check(leaf, certs, want)
	if err != nil {
		return nil, fmt.Errorf("cannot accept the certificate of %q: %w", brief(leaf.Subject.String()), err)
	}
	return chain, nil
}

func pick(certs []*x509.Certificate, key crypto.PublicKey) (*x509.Certificate, error) {
	var leaf *x509.Certificate
	for _, c := range certs {
		switch {
		case !SameKey(c.PublicKey, key):
		case leaf == nil:
			leaf = c
		case !leaf.Equal(c):
			return nil, ErrAmbiguous
		}
	}
	if leaf == nil {
		return nil, ErrOtherKey
	}
	return leaf, nil
}

func check(leaf *x509.Certificate, certs []*x509.Certificate, want Expect) (*Chain, error) {
	// A certificate that may sign others is a CA's even where it forgot to say so.
	if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
		return nil, ErrIsCA
	}
	if err := checkName(leaf.Subject, want); err != nil {
		return nil, err
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return nil, ErrNoSignature
	}

	at := want.At
	if at.IsZero() {
		at = time.Now()
	}
	if ahead := leaf.NotBefore.Sub(at); ahead > 0 && ahead <= skew {
		at = leaf.NotBefore
	}
	usage := x509.ExtKeyUsageAny
	if want.ClientAuth {
		usage = x509.ExtKeyUsageClientAuth
	}
	path, err := verify(leaf, certs, want.Roots, at, usage)
	if _, dates := errors.AsType[*DateError](err); dates && want.Outlives {
		path, err = outlived(leaf, certs, want.Roots, at, usage, err)
	}
	if err != nil {
		return nil, err
	}

	chain := &Chain{Leaf: leaf}
	for _, ca := range path[1:] {
		if at.After(ca.NotAfter) {
			chain.warn("the CA certificate of %q ended %s: the certificate of %q outlives it",
				brief(ca.Subject.String()), ca.NotAfter.UTC().Format(time.RFC3339), brief(leaf.Subject.String()))
		}
	}
	chain.Roots, _ = Anchors(want.Roots)
	chain.Intermediates = slices.DeleteFunc(path[1:], selfSigned)
	if want.ClientAuth && len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0 {
		chain.warn("the certificate of %q has no extended key usage: servers that insist on clientAuth will refuse it", leaf.Subject)
	}
	if want.NoExpiry && !leaf.NotAfter.Equal(noExpiry) {
		chain.warn("the certificate of %q ends %s: an IDevID should have no end (99991231235959Z, IEEE 802.1AR)",
			leaf.Subject, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return chain, nil
}

func checkName(got pkix.Name, want Expect) error {
	switch {
	case !want.AnySubject && !sameName(parsed(got), want.Subject):
		return &SubjectError{Want: want.Subject.String(), Got: got.String()}
	case want.CommonName != "" && got.CommonName != want.CommonName:
		return &SubjectError{Want: want.CommonName, Got: got.CommonName}
	}
	return nil
}

// parsed is a name that was read from a certificate, with all its attributes and not only those
// that pkix.Name has a field for.
func parsed(name pkix.Name) pkix.Name { return pkix.Name{ExtraNames: name.Names} }

func (c *Chain) warn(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}

// PEM is the leaf followed by its intermediates, as TLS programs want to read it.
func (c *Chain) PEM() []byte {
	return EncodePEM(slices.Concat([]*x509.Certificate{c.Leaf}, c.Intermediates))
}
