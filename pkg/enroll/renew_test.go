package enroll_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/enroll"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// renewing makes a bench whose device shows a certificate of the CA, and whose
// server takes nothing else for a renewal.
func renewing(t *testing.T) *bench {
	b := newBench(t)
	identity := pki.TLS(b.key, b.issuing.Issue(t, b.key.Public(), pkix.Name{CommonName: "dev-1", SerialNumber: "SN1"}))
	identity.Certificate = append(identity.Certificate, b.issuing.Cert.Raw)
	b.options.Identity = &identity
	plain := b.server.Config.Handler
	b.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/.well-known/est/iot/simplereenroll" {
			plain.ServeHTTP(w, r)
			return
		}
		if r.Header.Get("Authorization") != "" || len(r.TLS.PeerCertificates) == 0 || r.TLS.PeerCertificates[0].CheckSignatureFrom(b.issuing.Cert) != nil {
			http.Error(w, "show the certificate, and nothing else", http.StatusUnauthorized)
			return
		}
		body, _ := io.ReadAll(base64.NewDecoder(base64.StdEncoding, r.Body))
		csr, err := x509.ParseCertificateRequest(body)
		if err != nil {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		send(w, b.issue(csr))
	})
	return b
}

func (b *bench) enroller(t *testing.T) *enroll.Enroller {
	t.Helper()
	e, err := enroll.New(b.cfg, b.options)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestRenew(t *testing.T) {
	for _, method := range []config.Method{config.MethodBasic, config.MethodSecret, config.MethodMTLS} {
		t.Run(string(method), func(t *testing.T) {
			b := renewing(t)
			b.cfg.Method = method
			result, err := b.enroller(t).Renew(context.Background(), b.request)
			if err != nil {
				t.Fatal(err)
			}
			if !devid.SameKey(result.Chain.Leaf.PublicKey, b.key.Public()) || len(result.CA) != 2 {
				t.Errorf("got %+v", result)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		b := renewing(t)
		other := pki.NewCA(t, "other", nil).Server(t)
		b.options.Identity = &other
		_, err := b.enroller(t).Renew(context.Background(), b.request)
		if step.ClassOf(err) != step.ServerRefused || !strings.Contains(err.Error(), "401") {
			t.Errorf("got %v", err)
		}
	})
}

// A certificate is proven where a server asks for it and takes it, and nowhere
// else.
func TestProve(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*testing.T, *bench)
		class  step.Class // 0: proven
		text   string
	}{
		"by a server": {func(_ *testing.T, b *bench) {
			b.server.TLS.ClientAuth, b.server.TLS.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
			b.server.TLS.ClientCAs.AddCert(b.issuing.Cert)
		}, 0, ""},
		"not asked for": {func(_ *testing.T, b *bench) { b.server.TLS.ClientAuth = tls.NoClientCert }, step.ServerRefused, "did not ask for it"},
		"refused by TLS": {func(_ *testing.T, b *bench) {
			b.server.TLS.ClientAuth, b.server.TLS.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		}, step.ServerRefused, "unknown certificate authority"},
		"key that does not sign": {func(_ *testing.T, b *bench) { b.options.Identity.PrivateKey = brokenKey{b.key} }, step.Unavailable, "no TPM"},
		"key of another":         {func(t *testing.T, b *bench) { b.options.Identity.PrivateKey = pki.NewKey(t) }, step.ServerRefused, "error decrypting"},

		"without a server": {func(_ *testing.T, b *bench) { b.cfg.Method = config.MethodCA }, 0, ""},
		"without a server, of another CA": {func(t *testing.T, b *bench) {
			b.cfg.Method = config.MethodCA
			*b.options.Identity = pki.TLS(b.key, pki.NewCA(t, "other", nil).Issue(t, b.key.Public(), pkix.Name{CommonName: "dev-1"}))
		}, step.Refused, "unknown authority"},
		"without a server, ended": {func(t *testing.T, b *bench) {
			b.cfg.Method = config.MethodCA
			ended := b.issuing.Issue(t, b.key.Public(), pkix.Name{CommonName: "dev-1"}, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
			b.options.Identity.Certificate[0] = ended.Raw
			b.options.Identity.Leaf = ended
		}, step.Refused, "expired"},
		"without a server, key of another": {func(t *testing.T, b *bench) {
			b.cfg.Method = config.MethodCA
			b.options.Identity.PrivateKey = pki.NewKey(t)
		}, step.Refused, ""},
		"without a server, key that does not sign": {func(_ *testing.T, b *bench) {
			b.cfg.Method = config.MethodCA
			b.options.Identity.PrivateKey = brokenKey{b.key}
		}, step.Unavailable, "no TPM"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := renewing(t)
			b.options.Now = time.Now
			test.change(t, b)
			err := b.enroller(t).Prove(context.Background(), []*x509.Certificate{b.issuing.Cert, b.root.Cert})
			switch {
			case test.class == 0 && err != nil:
				t.Error(err)
			case test.class != 0 && (err == nil || step.ClassOf(err) != test.class || !strings.Contains(err.Error(), test.text)):
				t.Errorf("got %d: %v", step.ClassOf(err), err)
			}
		})
	}
}
