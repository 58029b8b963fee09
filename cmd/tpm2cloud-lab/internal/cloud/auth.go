package cloud

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
)

// trusted says whose certificates prove a client's identity at a label's simpleenroll.
var trusted = map[string]string{
	labelLDevID:      labelIDevID,
	labelOperational: labelLDevID,
}

// authenticate accepts a client by HTTP Basic, by the shared secret, or by its certificate, and
// notes in the event which of these it tried. A header decides alone if there is one.
func (s *estServer) authenticate(r *http.Request, label, operation string, event *Event) error {
	if operation == "simplereenroll" {
		event.Auth = "mtls"
		return verifyClient(r, s.cas[label])
	}
	if user, password, given := r.BasicAuth(); given {
		event.Auth = "basic"
		if !equal(user, s.accounts.Username) || !equal(password, s.accounts.Password) {
			return errors.New("wrong username or password")
		}
		return nil
	}
	if secret := r.Header.Get("Secret-Value"); secret != "" {
		event.Auth = "secret"
		if !equal(secret, s.accounts.Secret) {
			return errors.New("wrong secret")
		}
		return nil
	}
	if len(r.TLS.PeerCertificates) == 0 {
		event.Auth = "none"
		return errors.New("no credentials")
	}
	event.Auth = "mtls"
	ca := s.cas[trusted[label]]
	if ca == nil {
		return fmt.Errorf("label %s takes no client certificates", label)
	}
	return verifyClient(r, ca)
}

// verifyClient checks the client's certificate against one authority. TLS has proved that the
// client holds the key; whom it names is for each label to judge, so it is not done there.
func verifyClient(r *http.Request, ca *authority) error {
	if len(r.TLS.PeerCertificates) == 0 {
		return errors.New("no client certificate")
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(ca.root)
	intermediates.AddCert(ca.issuing)
	_, err := r.TLS.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("client certificate is not of the %s CA: %w", ca.label, err)
	}
	return nil
}

// hasClientAuth is stricter than x509.Verify, which lets a certificate without any extended key
// usage pass for all of them.
func hasClientAuth(c *x509.Certificate) bool {
	return slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
}

// equal compares in constant time, whatever the lengths.
func equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
