// Package ca finds the certificate of the CA that issues operational certificates, and says what is wrong with one that
// cannot be that.
//
// Of several certificates, as an EST server's /cacerts has them, it is the one at the bottom: the CA that issued no other
// of them. The Device Provisioning Service takes every certificate below the CA that it is given for one of the group, so
// that a root, which may have certified other things as well, would let in more than is meant.
package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/est"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Read reads a file of certificates.
func Read(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, step.As(step.Configuration, "", fmt.Errorf("cannot read the CA certificate: %w", err))
	}
	certs, err := devid.ParsePEM(data)
	if err != nil {
		return nil, step.As(step.Refused, "it must be a PEM file with certificates and nothing else", fmt.Errorf("cannot use %s: %w", path, err))
	}
	return certs, nil
}

// EST asks an EST server for the certificates of its CA, over a connection that is verified with the certificates of
// a file, or with the system's store where there is none.
func EST(ctx context.Context, server, label, serverCA string) ([]*x509.Certificate, error) {
	options := est.Options{Server: server, Label: label, Proxy: http.ProxyFromEnvironment, UserAgent: "tpm2cloud-azure"}
	if serverCA != "" {
		certs, err := Read(serverCA)
		if err != nil {
			return nil, err
		}
		options.Roots = x509.NewCertPool()
		for _, c := range certs {
			options.Roots.AddCert(c)
		}
	}
	client, err := est.New(options)
	if err != nil {
		return nil, step.As(step.Usage, "--est is HOST or HOST:PORT, --est-label the label of a CA there", err)
	}
	defer client.Close()
	certs, err := client.CACerts(ctx)
	return certs, failed(err)
}

// failed gives the error of an EST request its class and hint.
func failed(err error) error {
	answer, ok := errors.AsType[*est.Error](err)
	if !ok || errors.Is(err, context.Canceled) {
		return err
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return step.As(step.Refused, "the EST server did not prove who it is: --est must be a name in its TLS certificate, and --est-ca the PEM file of the CA that issued it", err)
	}
	switch s := answer.Status; {
	case s == http.StatusRequestTimeout, s == http.StatusTooManyRequests, s == http.StatusAccepted, s >= 500:
		return &step.Error{Class: step.Temporary, NotBefore: answer.RetryAfter, Hint: "the EST server is busy or broken", Err: err}
	case s == http.StatusUnauthorized, s == http.StatusForbidden:
		return step.As(step.ServerRefused, "RFC 7030 wants /cacerts without a login; where this server does not, get the certificate otherwise and name it with --ca", err)
	case s != 0:
		return step.As(step.ServerRefused, "check --est and --est-label: there is no EST server here", err)
	}
	return step.As(step.Temporary, "is there a network, and is --est right?", err)
}

// Issuing is the CA that issues operational certificates, of those given.
func Issuing(certs []*x509.Certificate, now time.Time) (*x509.Certificate, error) {
	for _, c := range certs {
		if err := isCA(c); err != nil {
			return nil, step.As(step.Refused, "what is wanted is the CA that issues operational certificates, not one of those", fmt.Errorf("cannot use %s: %w", Name(c), err))
		}
	}
	var bottom []*x509.Certificate
	for _, c := range certs {
		if !slices.ContainsFunc(certs, func(other *x509.Certificate) bool { return issued(c, other) }) &&
			!slices.ContainsFunc(bottom, c.Equal) {
			bottom = append(bottom, c)
		}
	}
	if len(bottom) != 1 {
		names := make([]string, len(bottom))
		for i, c := range bottom {
			names[i] = Name(c)
		}
		return nil, step.As(step.Refused, "put the right one into a file, and name it with --ca",
			fmt.Errorf("cannot tell which of %d CA certificates issues operational certificates: %s", len(certs), strings.Join(names, "; ")))
	}
	return bottom[0], current(bottom[0], now)
}

// isCA tells why c is none.
func isCA(c *x509.Certificate) error {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return errors.New("it is no CA certificate (its basic constraints do not say CA)")
	// RFC 5280, section 6.1.4 (n): only a key usage that is there can forbid it.
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("it may not issue certificates (its key usage lacks keyCertSign)")
	}
	return nil
}

func current(c *x509.Certificate, now time.Time) error {
	const hint = "is this machine's clock right?"
	if now.Before(c.NotBefore) {
		return step.As(step.Refused, hint, fmt.Errorf("cannot use %s: it is valid from %s", Name(c), c.NotBefore.UTC().Format(time.RFC3339)))
	}
	if now.After(c.NotAfter) {
		return step.As(step.Refused, hint, fmt.Errorf("cannot use %s: it has expired at %s", Name(c), c.NotAfter.UTC().Format(time.RFC3339)))
	}
	return nil
}

// issued tells whether other is a CA below c. A new root that the old one has signed, or the other way around
// (RFC 7030, section 4.1.3), is the same CA.
func issued(c, other *x509.Certificate) bool {
	return bytes.Equal(other.RawIssuer, c.RawSubject) && !bytes.Equal(other.RawSubject, c.RawSubject) && other.CheckSignatureFrom(c) == nil
}

// Name is how a certificate is called in messages.
func Name(c *x509.Certificate) string {
	if c.Subject.CommonName != "" {
		return fmt.Sprintf("%q", c.Subject.CommonName)
	}
	return fmt.Sprintf("%q", c.Subject.String())
}

// Thumbprint is by what Azure knows a certificate: the SHA-1 of its DER.
func Thumbprint(c *x509.Certificate) string {
	sum := sha1.Sum(c.Raw)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// ReadKey reads the private key of a CA: PEM with PKCS#8, or PKCS#1 or SEC 1 as openssl used to write them.
func ReadKey(path string) (crypto.Signer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, step.As(step.Configuration, "", fmt.Errorf("cannot read the key of the CA: %w", err))
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, step.As(step.Configuration, "it must be a PEM file with an unencrypted private key", fmt.Errorf("cannot use %s: %w", path, err))
	}
	return key, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		default: // openssl writes "EC PARAMETERS" before the key
			continue
		}
		if signer, ok := key.(crypto.Signer); ok && err == nil {
			return signer, nil
		}
		// The parser's error may tell of what it has read.
		return nil, errors.New("its private key cannot be read")
	}
	return nil, errors.New("there is no private key in it")
}

// Proof is a certificate for the verification code of the Device Provisioning Service, issued by the CA: who can make it
// has the CA's key.
func Proof(issuer *x509.Certificate, key crypto.Signer, code string, now time.Time) ([]byte, error) {
	public, ok := issuer.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		return nil, step.Fail(step.Configuration, "cannot prove the possession of %s: the key is another CA's", Name(issuer))
	}
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetInt64(now.UnixNano()),
		Subject:      pkix.Name{CommonName: code},
		NotBefore:    now.Add(-time.Hour), // for a clock over there that is behind
		NotAfter:     now.Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("cannot prove the possession of %s: %w", Name(issuer), err)
	}
	return der, nil
}
