package ek

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Options says what a certificate is judged by. Its zero values are the strict ones.
type Options struct {
	Anchors       []*x509.Certificate // trusted, self-signed or not; see [Trust]
	Intermediates []*x509.Certificate // untrusted help, such as the chain in NV
	At            time.Time           // the time to judge at; required

	// AllowExpired makes a warning of certificates that have expired.
	AllowExpired bool

	// AllowNoEKU accepts a certificate without any extended key usage, with a warning. One that has
	// the extension, but for other purposes only, is refused in any case.
	AllowNoEKU bool
}

// Verdict is the result for a good certificate.
type Verdict struct {
	Chain    []*x509.Certificate // from the EK certificate to the anchor, both included; one certificate if it's pinned
	Warnings []string            // what an operator should know, one sentence each, without period
}

// tcg-kp-EKCertificate, which the TCG EK Credential Profile requires in the extended key usage.
var oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1}

// Verify judges an EK certificate offline. The package comment has the rules. It doesn't tell
// that the TPM at hand has the key: see [SameKey].
func Verify(c *Certificate, o Options) (*Verdict, error) {
	if o.At.IsZero() {
		return nil, errors.New("cannot verify the EK certificate: there is no time to judge it at")
	}
	warnings, err := checkLeaf(c.X509, o)
	if err != nil {
		return nil, err
	}
	p := newPaths(c.X509, o)
	chain, err := p.at(o.At)
	if err == nil {
		return &Verdict{Chain: chain, Warnings: warnings}, nil
	}

	// The chain is not good now. It may be good at another time, and then it's the dates alone.
	// If the validities of a chain's certificates have an instant in common, then the latest notBefore is
	// one, so that those instants are enough to try.
	for _, t := range p.beginnings(o.At) {
		if chain, errThen := p.at(t); errThen == nil {
			if t.After(o.At) {
				return nil, notYetValid(chain, o.At)
			}
			expired := expiredAt(chain, o.At)
			if !o.AllowExpired {
				return nil, &ExpiredError{At: o.At, Expired: expired}
			}
			return &Verdict{Chain: chain, Warnings: append(warnings, expirations(expired)...)}, nil
		}
	}
	return nil, p.explain(err)
}

// checkLeaf judges the EK certificate by itself.
func checkLeaf(cert *x509.Certificate, o Options) (warnings []string, err error) {
	refuse := func(why error) ([]string, error) {
		return nil, fmt.Errorf("cannot verify the EK certificate %q: %w", describe(cert), why)
	}
	// Go takes IsCA from the basic constraints alone; a CA that has none still says what its key is for.
	if cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign != 0 {
		return refuse(ErrIsCA)
	}
	if signedWithSHA1(cert) {
		return refuse(ErrSHA1)
	}
	_, namesErr := parseNames(cert)
	for _, oid := range cert.UnhandledCriticalExtensions {
		switch {
		case !oid.Equal(oidSubjectAltName):
			return nil, &CriticalExtensionError{Subject: describe(cert), OID: oid}
		case namesErr != nil:
			return nil, &CriticalExtensionError{Subject: describe(cert), OID: oid, Err: namesErr}
		}
	}
	if namesErr != nil {
		warnings = append(warnings, "the EK certificate does not say which TPM it is for: "+namesErr.Error())
	}
	isEK := slices.ContainsFunc(cert.UnknownExtKeyUsage, oidEKCertificate.Equal)
	if !isEK {
		if !o.AllowNoEKU || len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) > 0 {
			return refuse(ErrNoEKU)
		}
		warnings = append(warnings, "the EK certificate is accepted although "+ErrNoEKU.Error())
	}
	return warnings, nil
}

func signedWithSHA1(cert *x509.Certificate) bool {
	switch cert.SignatureAlgorithm {
	case x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1:
		return true
	}
	return false
}

// paths looks for the ways from an EK certificate to an anchor.
type paths struct {
	leaf          *x509.Certificate
	known         []*x509.Certificate // anchors, then intermediates
	anchors       *x509.CertPool
	intermediates *x509.CertPool
	isAnchor      map[string]bool // by DER
}

func newPaths(leaf *x509.Certificate, o Options) *paths {
	p := &paths{
		leaf:          leaf,
		known:         slices.Concat(o.Anchors, o.Intermediates),
		anchors:       x509.NewCertPool(),
		intermediates: x509.NewCertPool(),
		isAnchor:      make(map[string]bool),
	}
	for _, cert := range o.Anchors {
		p.anchors.AddCert(cert)
		p.isAnchor[string(cert.Raw)] = true
	}
	for _, cert := range o.Intermediates {
		p.intermediates.AddCert(cert)
	}
	return p
}

// at returns a chain that is good at time t. The leaf must have passed checkLeaf.
func (p *paths) at(t time.Time) ([]*x509.Certificate, error) {
	// checkLeaf has dealt with the critical extensions and the purpose. crypto/x509 knows neither
	// directoryName (go.dev/issue/47618) nor the purpose of the TCG (go.dev/issue/47620).
	leaf := *p.leaf
	leaf.UnhandledCriticalExtensions = nil
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         p.anchors,
		Intermediates: p.intermediates,
		CurrentTime:   t,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, err
	}
	chain := slices.Clone(chains[0])
	chain[0] = p.leaf
	return chain, nil
}

// beginnings returns when the validity begins of each certificate that a chain of the leaf can consist of, judged
// by names alone: first the instants up to at, the latest first, then the others, the earliest first. So
// the chain that was good last is found first, and one that lies in the future only if there's no other.
func (p *paths) beginnings(at time.Time) []time.Time {
	reached := []*x509.Certificate{p.leaf}
	seen := map[string]bool{string(p.leaf.Raw): true}
	for i := 0; i < len(reached); i++ {
		for _, c := range p.known {
			if !seen[string(c.Raw)] && bytes.Equal(c.RawSubject, reached[i].RawIssuer) {
				seen[string(c.Raw)] = true
				reached = append(reached, c)
			}
		}
	}
	var past, future []time.Time
	for _, c := range reached {
		if c.NotBefore.After(at) {
			future = append(future, c.NotBefore)
		} else {
			past = append(past, c.NotBefore)
		}
	}
	slices.SortFunc(past, func(a, b time.Time) int { return b.Compare(a) })
	slices.SortFunc(future, time.Time.Compare)
	return slices.Compact(slices.Concat(past, future))
}

// expiredAt returns the certificates of a chain that have expired at time t.
func expiredAt(chain []*x509.Certificate, t time.Time) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(chain), func(c *x509.Certificate) bool { return !t.After(c.NotAfter) })
}

// expirations says of each certificate when it expired.
func expirations(certs []*x509.Certificate) []string {
	var lines []string
	for _, c := range certs {
		lines = append(lines, fmt.Sprintf("the certificate of %q expired on %s", describe(c), c.NotAfter.UTC().Format(time.DateOnly)))
	}
	return lines
}

func notYetValid(chain []*x509.Certificate, at time.Time) error {
	for _, c := range chain {
		if at.Before(c.NotBefore) {
			return &NotYetValidError{At: at, Subject: describe(c), From: c.NotBefore}
		}
	}
	return nil
}

// explain finds why no chain is good at any time, by walking from the leaf along good
// signatures as far as they lead. cause is what crypto/x509 said, for what has no better words.
func (p *paths) explain(cause error) error {
	seen := make(map[string]bool)
	for cert := p.leaf; ; {
		seen[string(cert.Raw)] = true
		if cert != p.leaf && len(cert.UnhandledCriticalExtensions) > 0 {
			return &CriticalExtensionError{Subject: describe(cert), OID: cert.UnhandledCriticalExtensions[0]}
		}
		if p.isAnchor[string(cert.Raw)] {
			return fmt.Errorf("cannot verify the EK certificate: %w", cause)
		}
		if signedWithSHA1(cert) {
			return fmt.Errorf("cannot verify the intermediate certificate %q of the EK certificate: %w", describe(cert), ErrSHA1)
		}
		issuer, nameMatches := p.issuer(cert, seen)
		if issuer == nil {
			return &UnknownIssuerError{
				Subject:        describe(cert),
				Issuer:         cert.Issuer.String(),
				AuthorityKeyID: cert.AuthorityKeyId,
				AIA:            cert.IssuingCertificateURL,
				NameMatches:    nameMatches,
			}
		}
		cert = issuer
	}
}

// issuer returns a certificate whose key signed cert. nameMatches tells, if there is none, whether
// there's at least one with the issuer's name.
func (p *paths) issuer(cert *x509.Certificate, seen map[string]bool) (issuer *x509.Certificate, nameMatches bool) {
	for _, c := range p.known {
		if seen[string(c.Raw)] || !bytes.Equal(c.RawSubject, cert.RawIssuer) {
			continue
		}
		if cert.CheckSignatureFrom(c) == nil {
			return c, true
		}
		nameMatches = true
	}
	return nil, nameMatches
}
