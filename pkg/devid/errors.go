package devid

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

var (
	// ErrOtherKey says that none of the certificates is for our key: the CA answered somebody
	// else's request, or the key was made anew since.
	ErrOtherKey = errors.New("it is for another key than the one in this device")

	// ErrAmbiguous says that there are several different certificates for our key.
	ErrAmbiguous = errors.New("there is more than one certificate for the key")

	// ErrIsCA says that the certificate lets the device issue certificates itself. A CA that does
	// that to every device is misconfigured, and badly.
	ErrIsCA = errors.New("it is the certificate of a CA, not of a device")

	// ErrNoClientAuth says that the certificate, or a CA above it, is restricted to other purposes than
	// the client side of TLS.
	ErrNoClientAuth = errors.New("its extended key usage lacks clientAuth (1.3.6.1.5.5.7.3.2), which a TLS client needs")

	// ErrNoSignature says that the key usage does not allow the signature of a TLS handshake.
	ErrNoSignature = errors.New("its key usage lacks digitalSignature, which a TLS client needs")
)

// SubjectError says that the CA certified another name than the one it was asked for.
type SubjectError struct {
	Want, Got string // distinguished names as in RFC 2253, or common names
}

func (e *SubjectError) Error() string {
	return fmt.Sprintf("its subject is %q and not %q", brief(e.Got), e.Want)
}

// DateError says that the signatures are good up to an anchor, and that the dates alone forbid it. A clock
// that is wrong looks the same.
type DateError struct {
	At          time.Time         // the time at which the chain was judged
	Certificate *x509.Certificate // the one of the chain that is not valid then
}

func (e *DateError) Error() string {
	name := brief(e.Certificate.Subject.String())
	what := fmt.Sprintf("%q ended", name)
	when := e.Certificate.NotAfter
	if e.NotYet() {
		what, when = fmt.Sprintf("%q does not begin before", name), e.Certificate.NotBefore
	}
	return fmt.Sprintf("%s %s (judged at %s)", what, when.UTC().Format(time.RFC3339), e.At.UTC().Format(time.RFC3339))
}

// NotYet says whether the certificate lies in the future; else it has expired.
func (e *DateError) NotYet() bool { return e.At.Before(e.Certificate.NotBefore) }

// ChainError says that no chain of good signatures leads to a trusted certificate, whatever the date.
type ChainError struct {
	Certificate *x509.Certificate
	Err         error // of crypto/x509, which tells why
}

func (e *ChainError) Error() string {
	issuer := fmt.Sprintf("%q", brief(e.Certificate.Issuer.String()))
	if id := e.Certificate.AuthorityKeyId; len(id) > 0 {
		issuer += " (key identifier " + hex.EncodeToString(id) + ")"
	}
	return fmt.Sprintf("no chain from its issuer %s to a trusted CA: %s", issuer, e.Err)
}

func (e *ChainError) Unwrap() error { return e.Err }

// brief is as much of a name as an error has room for: a CA may write one of any length.
func brief(name string) string {
	const most = 200
	if runes := []rune(name); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return name
}
