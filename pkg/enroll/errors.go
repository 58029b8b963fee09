package enroll

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/est"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// longestRetryAfter bounds what a server may ask for. A CA that has a day of work before it may say so; a device that
// is told to come back next year has been told nonsense.
const longestRetryAfter = 24 * time.Hour

func (e *Enroller) hint(format string, args ...any) string {
	return fmt.Sprintf("[%s]: ", e.options.Section) + fmt.Sprintf(format, args...)
}

// failed gives the error of an EST request its class and hint.
func (e *Enroller) failed(err error, roots []*x509.Certificate) error {
	answer, ok := errors.AsType[*est.Error](err)
	if _, classified := errors.AsType[*step.Error](err); classified || !ok {
		return err
	}
	if answer.Status != 0 {
		return e.answered(answer, err)
	}
	if unverified, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return e.unverified(unverified, err, roots)
	}
	if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == "remote error" {
		// The alert of a server that cannot go on itself (RFC 8446, section 6.2); crypto/tls has no name for it.
		if alert.Err.Error() == "tls: internal error" {
			return step.As(step.Temporary, e.hint("the server is busy or broken"), err)
		}
		if e.enroll.Method != config.MethodMTLS {
			return step.As(step.ServerRefused, e.hint("the server ended the TLS handshake; it must speak TLS 1.2 or 1.3 under the name in server = %q", e.enroll.Server), err)
		}
		return step.As(step.ServerRefused, e.hint("the server ended the TLS handshake; with est-mtls it must know the CA of the device's IDevID, "+
			"and see a certificate that has not expired"), err)
	}
	return step.As(step.Temporary, e.hint("is there a network, and is server = %q right?", e.enroll.Server), err)
}

// answered is for a server that was verified and that answered, but with no certificate.
func (e *Enroller) answered(answer *est.Error, err error) error {
	refused := func(format string, args ...any) error {
		return step.As(step.ServerRefused, e.hint(format, args...), err)
	}
	switch status := answer.Status; {
	case status == http.StatusOK:
		return refused("what answers at server = %q is no EST server: check server and label", e.enroll.Server)
	case status == http.StatusAccepted:
		return e.later(answer, "the CA wants somebody to approve the request first", err)
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return refused("%s", e.credentials())
	case status == http.StatusNotFound:
		return refused("the server has no EST here: check server = %q and label = %q", e.enroll.Server, e.enroll.Label)
	case status/100 == 3:
		return refused("server must be the host that the redirect points to; a redirect is not followed, because the credentials would go along")
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests, status >= 500:
		return e.later(answer, "the server is busy or broken", err)
	}
	return refused("the server does not take the request; its log says why")
}

func (e *Enroller) credentials() string {
	switch e.enroll.Method {
	case config.MethodBasic:
		return "the server does not take username and password"
	case config.MethodSecret:
		return "the server does not take the secret"
	}
	return "the server does not take the device's certificate: its CA must be known there, and the device be allowed"
}

func (e *Enroller) later(answer *est.Error, hint string, err error) error {
	notBefore := answer.RetryAfter
	if latest := time.Now().Add(longestRetryAfter); notBefore.After(latest) {
		notBefore = latest
	}
	return &step.Error{Class: step.Temporary, Busy: true, NotBefore: notBefore, Hint: e.hint("%s", hint), Err: err}
}

// unverified is for a server that did not prove who it is.
func (e *Enroller) unverified(failure *tls.CertificateVerificationError, err error, roots []*x509.Certificate) error {
	why := e.datesAside(failure, roots)
	if why == nil {
		return e.dates("the certificate of the EST server is not valid today", err)
	}
	if _, ok := errors.AsType[x509.HostnameError](why); ok {
		return step.As(step.Refused, e.hint("server = %q must be a name that is in the server's TLS certificate", e.enroll.Server), err)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](why); ok {
		return step.As(step.Refused, e.hint("server_ca = %q does not verify the EST server: name the PEM file of the CA that issued its TLS certificate", e.enroll.ServerCA), err)
	}
	return step.As(step.Refused, e.hint("the TLS certificate of the EST server cannot be used"), err)
}

// datesAside is what is wrong with the server's certificate besides dates. The error of the handshake doesn't tell:
// crypto/x509 stops at the first thing that is wrong with a certificate, its dates, and says "unknown authority" of an
// expired CA.
func (e *Enroller) datesAside(failure *tls.CertificateVerificationError, roots []*x509.Certificate) error {
	presented := failure.UnverifiedCertificates
	if len(presented) == 0 {
		return failure.Err
	}
	host := e.enroll.Server
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	presented = devid.Ageless(presented)
	options := x509.VerifyOptions{
		DNSName:       host,
		Intermediates: pool(presented[1:]),
		// For the system's roots, which cannot be copied: the certificate was issued when its root was valid.
		CurrentTime: failure.UnverifiedCertificates[0].NotBefore,
	}
	if roots != nil {
		options.Roots = pool(devid.Ageless(roots))
	}
	_, err := presented[0].Verify(options)
	return err
}

// dates is for what is wrong with the dates alone: the fault of our own clock, unless we know better.
func (e *Enroller) dates(what string, err error) error {
	if e.options.ClockVerified {
		return step.As(step.Refused, what, err)
	}
	return step.As(step.Temporary, what+", or the device's clock is wrong: is there a time server?", err)
}

// unacceptable gives an error of [devid.Check] its class and hint.
func (e *Enroller) unacceptable(err error) error {
	if _, ok := errors.AsType[*devid.DateError](err); ok {
		return e.dates("the certificate that the CA issued is not valid today", err)
	}
	hint := "the CA is misconfigured: its operator has to correct it"
	if _, ok := errors.AsType[*devid.SubjectError](err); ok {
		hint = e.hint("the CA certifies another name than it was asked for; if that is meant, set any_subject = true")
	}
	if _, ok := errors.AsType[*devid.ChainError](err); ok {
		hint = "the CA certificates that belong to the CA do not verify what it issued: its list (/cacerts, or the file ca_certificate) is not complete"
	}
	if errors.Is(err, devid.ErrNoClientAuth) {
		hint = "the profile of the CA must have the extended key usage clientAuth"
	}
	if errors.Is(err, devid.ErrOtherKey) {
		hint = "the CA answered with somebody else's certificate"
	}
	return step.As(step.Refused, hint, err)
}
