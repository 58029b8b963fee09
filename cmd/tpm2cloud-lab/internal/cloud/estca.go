package cloud

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"net/http"
	"time"

	"github.com/globalsign/est"
)

// estCA is the CA behind the router of globalsign/est: an estServer from that side.
type estCA estServer

// issuance is a certificate in the making: where a fault can still change it.
type issuance struct {
	template *x509.Certificate
	public   crypto.PublicKey
}

// lifetime makes the notAfter of a certificate from its notBefore.
type lifetime func(notBefore time.Time) time.Time

func daysLifetime(n int) lifetime {
	return func(from time.Time) time.Time { return from.AddDate(0, 0, n) }
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// CACerts returns the issuing CA and the root.
func (c *estCA) CACerts(_ context.Context, label string, _ *http.Request) ([]*x509.Certificate, error) {
	a := c.cas[label]
	return []*x509.Certificate{a.issuing, a.root}, nil
}

// CSRAttrs answers "none", which is 204 in RFC 7030, 4.5.2.
func (c *estCA) CSRAttrs(context.Context, string, *http.Request) (est.CSRAttrs, error) {
	return est.CSRAttrs{}, &estError{status: http.StatusNoContent}
}

// Enroll issues a certificate. The router has checked the signature of the request.
func (c *estCA) Enroll(ctx context.Context, csr *x509.CertificateRequest, label string, _ *http.Request) (*x509.Certificate, error) {
	x, a := exchangeOf(ctx), c.cas[label]
	x.event.Subject = csr.Subject.String()
	if csr.Subject.CommonName == "" {
		return nil, &estError{http.StatusBadRequest, "the request has no common name"}
	}
	name, err := keyName(csr.PublicKey)
	if err != nil {
		return nil, &estError{http.StatusBadRequest, err.Error()}
	}
	x.event.Key = name

	i := &issuance{template: c.template(csr, label), public: csr.PublicKey}
	var kind faultKind
	if x.fault != nil {
		kind = faultKinds[x.fault.Kind]
	}
	if kind.issue != nil {
		if err := kind.issue(i); err != nil {
			return nil, err
		}
	}
	leaf, err := sign(i.template, a.issuing, i.public, a.key)
	if err != nil {
		return nil, err
	}
	x.event.Serial = leaf.SerialNumber.Text(16)

	chain := []*x509.Certificate{leaf, a.issuing}
	if kind.chain != nil {
		chain = kind.chain(leaf, a)
	}
	return bundle(chain), nil
}

// Reenroll renews. The router has compared the subjects and verified the old certificate.
func (c *estCA) Reenroll(ctx context.Context, _ *x509.Certificate, csr *x509.CertificateRequest, label string, r *http.Request) (*x509.Certificate, error) {
	return c.Enroll(ctx, csr, label, r)
}

// ServerKeyGen is not offered: keys of these devices never leave their TPM.
func (c *estCA) ServerKeyGen(context.Context, *x509.CertificateRequest, string, *http.Request) (*x509.Certificate, []byte, error) {
	return nil, nil, errNotOffered
}

// TPMEnroll is not offered.
func (c *estCA) TPMEnroll(context.Context, *x509.CertificateRequest, []*x509.Certificate, []byte, []byte, string, *http.Request) ([]byte, []byte, []byte, error) {
	return nil, nil, nil, errNotOffered
}

// template is the profile of a label's certificates. The subject and the subjectAltName are those
// of the request; all else is the CA's to say.
func (c *estCA) template(csr *x509.CertificateRequest, label string) *x509.Certificate {
	t := &x509.Certificate{
		SerialNumber:          newSerial(),
		RawSubject:            csr.RawSubject,
		NotBefore:             time.Now().Add(-time.Minute).Truncate(time.Second), // clocks differ
		NotAfter:              endOfTime,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
	if days, limited := c.lifetime[label]; limited {
		t.NotAfter = days(t.NotBefore)
	}
	if label != labelIDevID {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		if _, isRSA := csr.PublicKey.(*rsa.PublicKey); isRSA {
			t.KeyUsage |= x509.KeyUsageKeyEncipherment
		}
	}
	for _, e := range csr.Extensions {
		if e.Id.Equal(oidSubjectAltName) {
			t.ExtraExtensions = append(t.ExtraExtensions, e)
		}
	}
	return t
}

// bundle makes the router answer with a whole chain. Its CA interface returns one certificate, of
// which it copies Raw into the PKCS#7: several in a row there are a set of several.
func bundle(chain []*x509.Certificate) *x509.Certificate {
	b := &x509.Certificate{}
	for _, c := range chain {
		b.Raw = append(b.Raw, c.Raw...)
	}
	return b
}
