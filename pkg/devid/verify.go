package devid

import (
	"bytes"
	"crypto/x509"
	"errors"
	"slices"
	"time"
)

// skew is how far a new certificate may lie in the future: the CA's clock is not ours.
const skew = 5 * time.Minute

// Anchors tells the trust anchors among the certificates of a CA from those that only help to find the
// way to them. The self-signed ones are anchors; if there are none, the list is that of an
// issuing CA whose root is elsewhere, and all of them are.
//
// Certificates of a root's key update (RFC 7030, section 4.1.3: OldWithNew, NewWithOld) have the same subject and
// issuer and are not self-signed. The key identifiers tell them apart. An anchor's own signature is not
// looked at: it proves nothing, and that of an old root may be one with SHA-1.
func Anchors(certs []*x509.Certificate) (anchors, intermediates []*x509.Certificate) {
	for _, c := range certs {
		if selfSigned(c) {
			anchors = append(anchors, c)
		} else {
			intermediates = append(intermediates, c)
		}
	}
	if len(anchors) == 0 {
		return intermediates, nil
	}
	return anchors, intermediates
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) &&
		(len(c.AuthorityKeyId) == 0 || bytes.Equal(c.AuthorityKeyId, c.SubjectKeyId))
}

// Verify finds the chain from leaf to one of the roots (see [Anchors]), for any purpose, at a time; the zero time
// is now. It returns the chain from the leaf to the anchor, both included. Its errors are
// [ChainError] and [DateError].
func Verify(leaf *x509.Certificate, intermediates, roots []*x509.Certificate, at time.Time) ([]*x509.Certificate, error) {
	return verify(leaf, intermediates, roots, at, x509.ExtKeyUsageAny)
}

func verify(leaf *x509.Certificate, intermediates, roots []*x509.Certificate, at time.Time, usage x509.ExtKeyUsage) ([]*x509.Certificate, error) {
	if at.IsZero() {
		at = time.Now()
	}
	anchors, more := Anchors(roots)
	intermediates = slices.Concat(more, intermediates)
	options := x509.VerifyOptions{
		Roots:         pool(anchors),
		Intermediates: pool(intermediates),
		CurrentTime:   at,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	}
	chains, err := leaf.Verify(options)
	if err == nil {
		return shortest(chains), nil
	}

	// Once more without the dates: crypto/x509 stops at those of the leaf before it looks at anything else, and
	// says "unknown authority" of an expired CA.
	options.Roots, options.Intermediates = pool(Ageless(anchors)), pool(Ageless(intermediates))
	chains, err = Ageless([]*x509.Certificate{leaf})[0].Verify(options)
	switch {
	case otherUse(err):
		return nil, ErrNoClientAuth
	case err != nil:
		return nil, &ChainError{Certificate: leaf, Err: err}
	}
	return nil, &DateError{At: at, Certificate: outOfDate(shortest(chains), at)}
}

// outlived finds a chain whose leaf is good at a time, and which was good itself before that, so that the end of its CAs
// is all that is wrong; otherwise the error is the one given. If the validities of a chain's certificates have an instant
// in common, then the latest notBefore is one, so that those instants are enough to try.
func outlived(leaf *x509.Certificate, intermediates, roots []*x509.Certificate, at time.Time, usage x509.ExtKeyUsage, otherwise error) ([]*x509.Certificate, error) {
	if at.Before(leaf.NotBefore) || at.After(leaf.NotAfter) {
		return nil, otherwise
	}
	var beginnings []time.Time
	for _, c := range slices.Concat([]*x509.Certificate{leaf}, intermediates, roots) {
		if !c.NotBefore.Before(leaf.NotBefore) && !c.NotBefore.After(at) {
			beginnings = append(beginnings, c.NotBefore)
		}
	}
	slices.SortFunc(beginnings, func(a, b time.Time) int { return b.Compare(a) })
	for _, then := range slices.CompactFunc(beginnings, time.Time.Equal) {
		if path, err := verify(leaf, intermediates, roots, then, usage); err == nil {
			return path, nil
		}
	}
	return nil, otherwise
}

// Ageless are copies of certificates that are valid at any time, for finding out whether the dates alone are wrong. The
// dates of an [x509.Certificate] are what the parser found; the signature is over the bytes that it keeps besides.
func Ageless(certs []*x509.Certificate) []*x509.Certificate {
	copies := make([]*x509.Certificate, len(certs))
	for i, c := range certs {
		anyTime := *c
		anyTime.NotBefore, anyTime.NotAfter = time.Time{}, noExpiry
		copies[i] = &anyTime
	}
	return copies
}

// outOfDate is the first certificate of an ageless chain that is not valid at a time, as it was before.
func outOfDate(chain []*x509.Certificate, at time.Time) *x509.Certificate {
	for _, c := range chain {
		if c, err := x509.ParseCertificate(c.Raw); err == nil && (at.Before(c.NotBefore) || at.After(c.NotAfter)) {
			return c
		}
	}
	return chain[0] // not reached: with every date good, the chain would have been
}

// otherUse says that there is a chain, but for other purposes.
func otherUse(err error) bool {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	return ok && invalid.Reason == x509.IncompatibleUsage
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

func shortest(chains [][]*x509.Certificate) []*x509.Certificate {
	return slices.MinFunc(chains, func(a, b []*x509.Certificate) int { return len(a) - len(b) })
}
