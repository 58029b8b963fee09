package enroll_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/enroll"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// A bench is a device with its files, and an EST server with a CA that do as the test says.
type bench struct {
	cfg     config.Enroll
	options enroll.Options
	request enroll.Request
	key     crypto.Signer

	root, issuing, tls *pki.CA
	server             *httptest.Server
	requests, posts    atomic.Int32

	// What the server does, where the test has its own mind.
	cacerts func() []*x509.Certificate
	issue   func(csr *x509.CertificateRequest) []*x509.Certificate
	instead http.HandlerFunc // of simpleenroll
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{key: pki.NewKey(t)}
	b.root = pki.NewCA(t, "root", nil)
	b.issuing = pki.NewCA(t, "issuing", b.root)
	b.tls = pki.NewCA(t, "tls", nil)
	b.cacerts = func() []*x509.Certificate { return []*x509.Certificate{b.issuing.Cert, b.root.Cert} }
	b.issue = func(csr *x509.CertificateRequest) []*x509.Certificate {
		return []*x509.Certificate{b.issuing.Issue(t, csr.PublicKey, csr.Subject)}
	}

	b.server = httptest.NewUnstartedServer(b)
	b.server.TLS = &tls.Config{Certificates: []tls.Certificate{b.tls.Server(t)}, ClientAuth: tls.RequestClientCert}
	b.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	b.server.StartTLS()
	t.Cleanup(b.server.Close)

	dir := t.TempDir()
	writeCerts(t, dir, "server-ca.pem", b.tls.Cert)
	b.cfg = config.Enroll{
		Method: config.MethodBasic, Server: strings.TrimPrefix(b.server.URL, "https://"), Label: "iot", ServerCA: "/server-ca.pem",
		Username: "user", Password: "password", Secret: "secret",
	}
	b.options = enroll.Options{
		Section:       "idevid.enroll",
		Path:          func(p string) string { return filepath.Join(dir, p) },
		Secret:        func(s config.Secret) (string, error) { return "the-" + string(s), nil },
		ClockVerified: true,
	}
	subject := devid.Subject("dev-1", "SN1", "")
	csr, err := devid.CSR(b.key, subject)
	if err != nil {
		t.Fatal(err)
	}
	b.request = enroll.Request{CSR: csr, Expect: devid.Expect{Key: b.key.Public(), Subject: subject, ClientAuth: true}}
	return b
}

func (b *bench) dir() string { return b.options.Path("/") }

func (b *bench) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.requests.Add(1)
	switch r.URL.Path {
	case "/.well-known/est/iot/cacerts":
		send(w, b.cacerts())
	case "/.well-known/est/iot/simpleenroll":
		b.posts.Add(1)
		if b.instead != nil {
			b.instead(w, r)
			return
		}
		if !b.allowed(r) {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		body, _ := io.ReadAll(base64.NewDecoder(base64.StdEncoding, r.Body))
		csr, err := x509.ParseCertificateRequest(body)
		if err != nil || csr.CheckSignature() != nil {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		send(w, b.issue(csr))
	default:
		http.NotFound(w, r)
	}
}

func (b *bench) allowed(r *http.Request) bool {
	switch b.cfg.Method {
	case config.MethodSecret:
		return r.Header.Get("Secret-Value") == "the-secret"
	case config.MethodMTLS:
		return len(r.TLS.PeerCertificates) > 0 && r.TLS.PeerCertificates[0].Subject.CommonName == "idevid"
	}
	user, password, _ := r.BasicAuth()
	return user == "user" && password == "the-password"
}

func send(w http.ResponseWriter, certs []*x509.Certificate) {
	var all []byte
	for _, c := range certs {
		all = append(all, c.Raw...)
	}
	der, err := pkcs7.DegenerateCertificate(all)
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
	io.WriteString(w, base64.StdEncoding.EncodeToString(der))
}

func (b *bench) enroll(t *testing.T) (*enroll.Result, error) {
	t.Helper()
	e, err := enroll.New(b.cfg, b.options)
	if err != nil {
		t.Fatal(err)
	}
	return e.Enroll(context.Background(), b.request)
}

func TestMethods(t *testing.T) {
	for _, method := range []config.Method{config.MethodBasic, config.MethodSecret, config.MethodMTLS} {
		t.Run(string(method), func(t *testing.T) {
			b := newBench(t)
			b.cfg.Method = method
			if method == config.MethodMTLS {
				key := pki.NewKey(t)
				cert := pki.NewCA(t, "maker", nil).Issue(t, key.Public(), pkix.Name{CommonName: "idevid"})
				identity := pki.TLS(key, cert)
				b.options.Identity = &identity
			}
			result, err := b.enroll(t)
			if err != nil {
				t.Fatal(err)
			}
			if len(result.CA) != 2 || len(result.Chain.Intermediates) != 1 || len(result.Chain.Roots) != 1 || !devid.SameKey(result.Chain.Leaf.PublicKey, b.key.Public()) {
				t.Errorf("got %+v", result)
			}
			if n := b.requests.Load(); n != 2 {
				t.Errorf("the server got %d requests", n)
			}
		})
	}
	t.Run("unknown", func(t *testing.T) {
		if _, err := enroll.New(config.Enroll{Method: "scep"}, enroll.Options{}); step.ClassOf(err) != step.Configuration {
			t.Errorf("got %v", err)
		}
	})
}

func TestErrors(t *testing.T) {
	status := func(code int, header ...string) func(*testing.T, *bench) {
		return func(_ *testing.T, b *bench) {
			b.instead = func(w http.ResponseWriter, _ *http.Request) {
				for i := 0; i < len(header); i += 2 {
					w.Header().Set(header[i], header[i+1])
				}
				w.WriteHeader(code)
			}
		}
	}
	issued := func(changes ...pki.Change) func(*testing.T, *bench) {
		return func(t *testing.T, b *bench) {
			b.issue = func(csr *x509.CertificateRequest) []*x509.Certificate {
				return []*x509.Certificate{b.issuing.Issue(t, csr.PublicKey, csr.Subject, changes...)}
			}
		}
	}
	serverCert := func(cert func(*testing.T, *bench) tls.Certificate) func(*testing.T, *bench) {
		return func(t *testing.T, b *bench) {
			c := cert(t, b)
			b.server.TLS.Certificates = nil
			b.server.TLS.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c, nil }
		}
	}
	unverified := func(then func(*testing.T, *bench)) func(*testing.T, *bench) {
		return func(t *testing.T, b *bench) {
			b.options.ClockVerified = false
			then(t, b)
		}
	}
	expiredServer := serverCert(func(t *testing.T, b *bench) tls.Certificate {
		return b.tls.Server(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	})
	in1970 := func(_ *testing.T, b *bench) { b.options.Now = func() time.Time { return time.Unix(0, 0) } }
	expired := issued(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	file := func(name, content string) func(*testing.T, *bench) {
		return func(t *testing.T, b *bench) { writeFile(t, b.dir(), name, []byte(content), 0o644) }
	}

	for name, test := range map[string]struct {
		change   func(*testing.T, *bench)
		class    step.Class
		text     string // part of the error
		hint     string // part of the hint
		requests int32  // that reach the server
		after    time.Duration
	}{
		"wrong password": {func(_ *testing.T, b *bench) {
			b.options.Secret = func(config.Secret) (string, error) { return "nonsense", nil }
		}, step.ServerRefused, "401 Unauthorized: who are you?", "[idevid.enroll]: the server does not take username and password", 2, 0},
		"wrong secret": {func(_ *testing.T, b *bench) {
			b.cfg.Method = config.MethodSecret
			b.options.Secret = func(config.Secret) (string, error) { return "nonsense", nil }
		}, step.ServerRefused, "401", "does not take the secret", 2, 0},
		"unknown IDevID": {func(t *testing.T, b *bench) {
			b.cfg.Method = config.MethodMTLS
			c := pki.NewCA(t, "x", nil).Server(t)
			b.options.Identity = &c
		}, step.ServerRefused, "401", "does not take the device's certificate", 2, 0},
		"IDevID refused by TLS": {func(t *testing.T, b *bench) {
			b.cfg.Method = config.MethodMTLS
			c := pki.NewCA(t, "x", nil).Server(t)
			b.options.Identity = &c
			b.server.TLS.ClientAuth, b.server.TLS.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		}, step.ServerRefused, "unknown certificate authority", "it must know the CA of the device's IDevID", 0, 0},
		"TPM that does not sign": {func(t *testing.T, b *bench) {
			b.cfg.Method = config.MethodMTLS
			c := pki.NewCA(t, "x", nil).Server(t)
			c.PrivateKey = brokenKey{c.PrivateKey.(crypto.Signer)}
			b.options.Identity = &c
		}, step.Unavailable, "cannot sign the TLS handshake with the device's key: no TPM", "plug it in", 0, 0},
		"no secret": {func(_ *testing.T, b *bench) {
			b.options.Secret = func(config.Secret) (string, error) { return "", step.Fail(step.Permission, "no") }
		}, step.Permission, "cannot read the password of the EST server: no", "", 0, 0},
		"no identity": {func(_ *testing.T, b *bench) { b.cfg.Method = config.MethodMTLS }, step.Software, "none was given", "", 0, 0},

		"403":          {status(403), step.ServerRefused, "403", "username", 2, 0},
		"400":          {status(400), step.ServerRefused, "400", "its log", 2, 0},
		"404":          {status(404), step.ServerRefused, "404", `label = "iot"`, 2, 0},
		"other label":  {func(_ *testing.T, b *bench) { b.cfg.Label = "other" }, step.ServerRefused, "404", `label = "other"`, 1, 0},
		"redirect":     {status(307, "Location", "https://example.com/"), step.ServerRefused, `"https://example.com/"`, "not followed", 2, 0},
		"HTML":         {status(200, "Content-Type", "text/html"), step.ServerRefused, `"text/html"`, "no EST server", 2, 0},
		"202":          {status(202, "Retry-After", "90"), step.Temporary, "202 Accepted", "approve", 2, 90 * time.Second},
		"503":          {status(503, "Retry-After", "60"), step.Temporary, "503", "busy", 2, time.Minute},
		"503 date":     {status(503, "Retry-After", time.Now().Add(10*time.Minute).UTC().Format(http.TimeFormat)), step.Temporary, "503", "busy", 2, 10 * time.Minute},
		"429 too long": {status(429, "Retry-After", "31536000"), step.Temporary, "429", "busy", 2, 24 * time.Hour},
		"503 garbage":  {status(503, "Retry-After", "later"), step.Temporary, "503", "busy", 2, 0},
		"500":          {status(500), step.Temporary, "500", "broken", 2, 0},
		"hung up": {func(_ *testing.T, b *bench) {
			b.instead = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
		}, step.Temporary, "cannot enrol at", "network", 2, 0},
		"nobody listens": {func(_ *testing.T, b *bench) { b.server.Close() }, step.Temporary, "refused", "network", 0, 0},
		"no such host":   {func(_ *testing.T, b *bench) { b.cfg.Server = "est.invalid" }, step.Temporary, "est.invalid", "network", 0, 0},
		"plain HTTP": {func(t *testing.T, b *bench) {
			s := httptest.NewServer(b)
			t.Cleanup(s.Close)
			b.cfg.Server = strings.TrimPrefix(s.URL, "http://")
		}, step.Temporary, "HTTP response to HTTPS", "is server = ", 0, 0},

		"wrong CA":   {func(t *testing.T, b *bench) { writeCerts(t, b.dir(), "server-ca.pem", b.root.Cert) }, step.Refused, "unknown authority", `server_ca = "/server-ca.pem" does not verify`, 0, 0},
		"system CAs": {func(_ *testing.T, b *bench) { b.cfg.ServerCA = config.SystemCA }, step.Refused, "unknown authority", `server_ca = "system"`, 0, 0},
		"wrong host": {serverCert(func(t *testing.T, b *bench) tls.Certificate {
			return b.tls.Server(t, func(c *x509.Certificate) { c.IPAddresses = nil })
		}), step.Refused, "127.0.0.1", "must be a name that is in", 0, 0},
		"client's cert": {serverCert(func(t *testing.T, b *bench) tls.Certificate {
			return b.tls.Server(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
		}), step.Refused, "key usage", "cannot be used", 0, 0},
		"expired server":            {expiredServer, step.Refused, "expired", "not valid today", 0, 0},
		"expired server, bad clock": {unverified(expiredServer), step.Temporary, "expired", "time server", 0, 0},
		"1970":                      {in1970, step.Refused, "not yet valid", "not valid today", 0, 0},
		"1970, bad clock":           {unverified(in1970), step.Temporary, "not yet valid", "time server", 0, 0},
		"wrong CA in 1970":          {unverified(func(t *testing.T, b *bench) { in1970(t, b); writeCerts(t, b.dir(), "server-ca.pem", b.root.Cert) }), step.Refused, "", "server_ca", 0, 0},
		"expired server of wrong CA": {unverified(func(t *testing.T, b *bench) {
			expiredServer(t, b)
			writeCerts(t, b.dir(), "server-ca.pem", b.root.Cert)
		}), step.Refused, "", "server_ca", 0, 0},
		"expired server older than its CA": {func(t *testing.T, b *bench) {
			young := pki.NewCA(t, "young", nil, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(-time.Minute) })
			serverCert(func(t *testing.T, _ *bench) tls.Certificate {
				return young.Server(t, func(c *x509.Certificate) {
					c.NotBefore, c.NotAfter = time.Now().Add(-3*time.Hour), time.Now().Add(-2*time.Hour)
				})
			})(t, b)
			writeCerts(t, b.dir(), "server-ca.pem", young.Cert)
		}, step.Refused, "expired", "not valid today", 0, 0},
		"expired server CA, bad clock": {unverified(func(t *testing.T, b *bench) {
			old := pki.NewCA(t, "old", nil, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
			serverCert(func(t *testing.T, _ *bench) tls.Certificate { return old.Server(t) })(t, b)
			writeCerts(t, b.dir(), "server-ca.pem", old.Cert)
		}), step.Temporary, "", "time server", 0, 0},

		"other key": {func(t *testing.T, b *bench) {
			b.issue = func(csr *x509.CertificateRequest) []*x509.Certificate {
				return []*x509.Certificate{b.issuing.Issue(t, pki.NewKey(t).Public(), csr.Subject)}
			}
		}, step.Refused, "another key", "somebody else's", 2, 0},
		"CA certificate":     {issued(func(c *x509.Certificate) { c.IsCA = true }), step.Refused, "of a CA", "its operator", 2, 0},
		"wrong name":         {issued(func(c *x509.Certificate) { c.Subject.CommonName = "x" }), step.Refused, "CN=x", "any_subject", 2, 0},
		"no clientAuth":      {issued(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), step.Refused, "clientAuth", "profile", 2, 0},
		"expired":            {expired, step.Refused, "ended", "not valid today", 2, 0},
		"expired, bad clock": {unverified(expired), step.Temporary, "ended", "time server", 2, 0},
		"not in cacerts": {func(_ *testing.T, b *bench) {
			b.cacerts = func() []*x509.Certificate { return []*x509.Certificate{b.tls.Cert} }
		}, step.Refused, "no chain", "/cacerts", 2, 0},
		"of the TLS CA": {func(t *testing.T, b *bench) {
			// The CA of the server's TLS certificate may sign no device unless /cacerts says so.
			b.issue = func(csr *x509.CertificateRequest) []*x509.Certificate {
				return []*x509.Certificate{b.tls.Issue(t, csr.PublicKey, csr.Subject), b.tls.Cert}
			}
		}, step.Refused, "no chain", "/cacerts", 2, 0},

		"no CA file":      {func(_ *testing.T, b *bench) { b.cfg.ServerCA = "/none.pem" }, step.Configuration, "/none.pem: no such file", "server_ca must be", 0, 0},
		"empty CA file":   {file("server-ca.pem", ""), step.Configuration, "/server-ca.pem: cannot read the certificates: there is no PEM", "server_ca", 0, 0},
		"CA file is none": {func(_ *testing.T, b *bench) { b.cfg.ServerCA = "/" }, step.Configuration, "not a regular file", "server_ca", 0, 0},
		"proxy":           {func(_ *testing.T, b *bench) { b.cfg.Proxy = "http://u:hunter2@[x" }, step.Configuration, "cannot use the proxy", "proxy must be", 0, 0},
		"no proxy there":  {func(_ *testing.T, b *bench) { b.cfg.Proxy = "http://u:hunter2@127.0.0.1:1" }, step.Temporary, "127.0.0.1:1", "network", 0, 0},
		"server":          {func(_ *testing.T, b *bench) { b.cfg.Server = "a/b" }, step.Configuration, `"a/b"`, "check server", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			test.change(t, b)
			_, err := b.enroll(t)
			if err == nil {
				t.Fatal("it was accepted")
			}
			if step.ClassOf(err) != test.class || !strings.Contains(err.Error(), test.text) || !strings.Contains(step.HintOf(err), test.hint) {
				t.Errorf("got %d: %v\nhint: %s", step.ClassOf(err), err, step.HintOf(err))
			}
			if strings.Contains(err.Error()+step.HintOf(err), "hunter2") || strings.Contains(err.Error(), "the-password") {
				t.Errorf("a secret is in %v", err)
			}
			if n := b.requests.Load(); n != test.requests || b.posts.Load() > 1 {
				t.Errorf("the server got %d requests, %d of them to enrol", n, b.posts.Load())
			}
			e, _ := errors.AsType[*step.Error](err)
			if test.after == 0 && !e.NotBefore.IsZero() || test.after != 0 && (time.Until(e.NotBefore)-test.after).Abs() > 5*time.Second {
				t.Errorf("got not before %v", e.NotBefore)
			}
			// Who answers that it is too early is busy; and a clock that is set while we wait makes the wait no longer.
			if test.after != 0 && (!e.Busy || e.NotBefore == e.NotBefore.Round(0)) {
				t.Errorf("busy: %t, not before %v by the wall clock", e.Busy, e.NotBefore)
			}
		})
	}
}

// A brokenKey is one whose TPM has gone.
type brokenKey struct{ crypto.Signer }

func (brokenKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, step.As(step.Unavailable, "plug it in", errors.New("no TPM"))
}

func TestAgainAfter202(t *testing.T) {
	b := newBench(t)
	b.instead = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }
	if _, err := b.enroll(t); step.ClassOf(err) != step.Temporary {
		t.Fatal(err)
	}
	b.instead = nil
	if _, err := b.enroll(t); err != nil {
		t.Error(err)
	}
}

func TestAnySubject(t *testing.T) {
	b := newBench(t)
	b.cfg.AnySubject = true
	b.issue = func(csr *x509.CertificateRequest) []*x509.Certificate {
		return []*x509.Certificate{b.root.Cert, b.issuing.Issue(t, csr.PublicKey, pkix.Name{CommonName: "x"}), b.issuing.Cert}
	}
	if _, err := b.enroll(t); err != nil {
		t.Error(err)
	}
}

func pemKey(t *testing.T, kind string, der []byte, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
