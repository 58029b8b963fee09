package ek

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

var (
	// ErrNotFound says that the TPM holds no EK certificate in any slot. The vendors of some firmware TPMs
	// hand it out over the network only.
	ErrNotFound = errors.New("the TPM holds no EK certificate")

	// ErrUnreadable is for a [ReadIndex] to wrap: the index is defined, but this TPM will not let it be
	// read however often one tries (it was never written, or needs an authorization that we don't have).
	ErrUnreadable = errors.New("the NV index cannot be read")

	// ErrIsCA says that the certificate is one of a certificate authority, not of an endorsement key.
	// AMD's and Nuvoton's own roots have been taken for EK certificates before.
	ErrIsCA = errors.New("it is the certificate of a CA, not of an endorsement key")

	// ErrNoEKU says that the extended key usage tcg-kp-EKCertificate (2.23.133.8.1) is missing:
	// the CA did not issue it as an EK certificate.
	ErrNoEKU = errors.New("it lacks the extended key usage tcg-kp-EKCertificate (2.23.133.8.1)")

	// ErrSHA1 says that the certificate, or an intermediate that its chain needs, is signed with SHA-1.
	// Such are the certificates of TPM 1.2; a signature of SHA-1 can be forged, so it's never verified.
	ErrSHA1 = errors.New("it is signed with SHA-1, as certificates of TPM 1.2 are, which proves nothing")
)

// MalformedError says that the bytes in NV are not an EK certificate, or not a chain.
type MalformedError struct {
	What   string // "EK certificate" or "EK certificate chain"
	Reason string
	Err    error // what the ASN.1 or X.509 parser said, or nil
}

func (e *MalformedError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("cannot parse the %s: %s: %s", e.What, e.Reason, e.Err)
	}
	return fmt.Sprintf("cannot parse the %s: %s", e.What, e.Reason)
}

func (e *MalformedError) Unwrap() error { return e.Err }

// SlotKeyError says that a slot holds a well-formed certificate of another kind of key than the slot
// is for: the slot's template can't make the key that is certified.
type SlotKeyError struct {
	Slot Slot
	Key  KeyKind // "" if the key is of no kind that this package knows
}

func (e *SlotKeyError) Error() string {
	key := e.Key
	if key == "" {
		key = "unknown"
	}
	return fmt.Sprintf("cannot use the EK certificate at 0x%08X: its key is of the kind %s, and the slot is for %s",
		e.Slot.Certificate, key, e.Slot.Key)
}

// UnsupportedKeyError says that the TPM has EK certificates, but only for kinds of key
// that this program can't use.
type UnsupportedKeyError struct {
	Keys []KeyKind
}

func (e *UnsupportedKeyError) Error() string {
	var keys []string
	for _, k := range e.Keys {
		keys = append(keys, string(k))
	}
	return fmt.Sprintf("cannot use the EK certificates of the TPM: they are for %s, and only %s and %s are supported",
		strings.Join(keys, ", "), RSA2048, P256)
}

// UnknownIssuerError says that a certificate of the chain was issued by a CA that is neither an
// anchor nor among the intermediates. It carries what an operator needs to find that CA's certificate.
type UnknownIssuerError struct {
	Subject        string   // the certificate whose issuer is missing
	Issuer         string   // the distinguished name of the missing CA
	AuthorityKeyID []byte   // its key identifier, if the certificate says it
	AIA            []string // where the certificate says that the CA's certificate can be had; it's not fetched

	// NameMatches says that a CA of that name is known, but that it did not sign the certificate:
	// it's another key of the same CA, or the certificate is forged.
	NameMatches bool
}

func (e *UnknownIssuerError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cannot verify the EK certificate: no root or intermediate for issuer %q", e.Issuer)
	if len(e.AuthorityKeyID) > 0 {
		fmt.Fprintf(&b, " (key identifier %s)", hex.EncodeToString(e.AuthorityKeyID))
	}
	fmt.Fprintf(&b, " of %q", e.Subject)
	if e.NameMatches {
		b.WriteString("; a CA of that name is known, but did not sign it")
	}
	return b.String()
}

// CriticalExtensionError says that a certificate of the chain has a critical extension that
// isn't understood, so that it must be refused (RFC 5280, section 4.2).
type CriticalExtensionError struct {
	Subject string
	OID     asn1.ObjectIdentifier
	Err     error // why the extension could not be understood, or nil if it's not known at all
}

func (e *CriticalExtensionError) Error() string {
	s := fmt.Sprintf("cannot verify the EK certificate: critical extension %s of %q", e.OID, e.Subject)
	if e.Err != nil {
		return s + ": " + e.Err.Error()
	}
	return s + " is not known"
}

func (e *CriticalExtensionError) Unwrap() error { return e.Err }

// ExpiredError says that the signatures are good up to an anchor, and that it's the dates alone that
// forbid it: one or more certificates of the chain have expired.
type ExpiredError struct {
	At      time.Time           // the time at which the chain was judged
	Expired []*x509.Certificate // in the order of the chain; at least one
}

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("cannot verify the EK certificate: %s (judged at %s)",
		strings.Join(expirations(e.Expired), "; "), e.At.UTC().Format(time.RFC3339))
}

// NotYetValidError says that the signatures are good up to an anchor, and that it's the dates alone that
// forbid it: a certificate of the chain begins later. A clock that is wrong looks the same.
type NotYetValidError struct {
	At      time.Time
	Subject string
	From    time.Time // when the certificate's validity begins
}

func (e *NotYetValidError) Error() string {
	return fmt.Sprintf("cannot verify the EK certificate: %q is not valid before %s (judged at %s)",
		e.Subject, e.From.UTC().Format(time.RFC3339), e.At.UTC().Format(time.RFC3339))
}
