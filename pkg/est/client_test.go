package est_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"github.com/tpm2cloud/tpm2cloud/pkg/est"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// A server is an EST server whose answers a test chooses. It counts its requests.
type server struct {
	*httptest.Server
	ca       *pki.CA
	requests atomic.Int32
}

func serve(t *testing.T, handler http.HandlerFunc, changes ...func(*tls.Config)) *server {
	t.Helper()
	s := &server{ca: pki.NewCA(t, "server CA", nil)}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		handler(w, r)
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{s.ca.Server(t)}}
	for _, change := range changes {
		change(s.TLS)
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *server) host() string { return strings.TrimPrefix(s.URL, "https://") }

func (s *server) roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(s.ca.Cert)
	return roots
}

func (s *server) client(t *testing.T, changes ...func(*est.Options)) *est.Client {
	t.Helper()
	o := est.Options{Server: s.host(), Roots: s.roots()}
	for _, change := range changes {
		change(&o)
	}
	c, err := est.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func answer(contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		io.WriteString(w, body)
	}
}

const certsOnlyType = "application/pkcs7-mime; smime-type=certs-only"

func TestCACerts(t *testing.T) {
	root := pki.NewCA(t, "root", nil).Cert
	body := text(certsOnly(t, root))
	var got *http.Request
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		answer(certsOnlyType, body)(w, r)
	})
	c := s.client(t, func(o *est.Options) { o.Label, o.UserAgent = "iot-1", "tpm2cloud/1" })
	certs, err := c.CACerts(context.Background())
	if err != nil || len(certs) != 1 || !certs[0].Equal(root) {
		t.Fatalf("got %d certificates: %v", len(certs), err)
	}
	if got.Method != "GET" || got.URL.Path != "/.well-known/est/iot-1/cacerts" || got.UserAgent() != "tpm2cloud/1" {
		t.Errorf("got %s %s of %s", got.Method, got.URL, got.UserAgent())
	}
	if got.Header.Get("Authorization")+got.Header.Get("Secret-Value")+got.Header.Get("Accept-Encoding") != "" {
		t.Errorf("got the headers %v", got.Header)
	}
}

func TestSimpleEnroll(t *testing.T) {
	csr := bytes.Repeat([]byte("request"), 50)
	leaf := pki.NewCA(t, "leaf", nil).Cert
	var got *http.Request
	var sent []byte
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		sent, _ = io.ReadAll(r.Body)
		answer("application/pkcs7-mime", text(certsOnly(t, leaf)))(w, r)
	})
	c := s.client(t, func(o *est.Options) { o.Username, o.Password, o.Secret = "user", "pa:ss", "s3cret" })
	certs, err := c.SimpleEnroll(context.Background(), csr)
	if err != nil || len(certs) != 1 || !certs[0].Equal(leaf) {
		t.Fatalf("got %d certificates: %v", len(certs), err)
	}
	if got.Method != "POST" || got.URL.Path != "/.well-known/est/simpleenroll" || got.Header.Get("Content-Type") != "application/pkcs10" ||
		got.Header.Get("Content-Transfer-Encoding") != "base64" || got.Header.Get("Secret-Value") != "s3cret" {
		t.Errorf("got %s %s %v", got.Method, got.URL, got.Header)
	}
	if user, password, ok := got.BasicAuth(); !ok || user != "user" || password != "pa:ss" {
		t.Errorf("got the credentials %q, %q", user, password)
	}
	lines := strings.Split(strings.TrimSuffix(string(sent), "\n"), "\n")
	if len(lines[0]) != 64 {
		t.Errorf("the first line has %d characters", len(lines[0]))
	}
	if der, err := base64.StdEncoding.DecodeString(strings.Join(lines, "")); err != nil || !bytes.Equal(der, csr) {
		t.Errorf("got another request: %v", err)
	}
}

func TestAnswers(t *testing.T) {
	leaf := pki.NewCA(t, "leaf", nil).Cert
	der := certsOnly(t, leaf)
	status := func(code int, text string, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
			io.WriteString(w, text)
		}
	}
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		status  int // of the error; -1: no error
		text    string
		absent  string
		after   time.Duration
	}{
		"PEM":             {handler: answer("application/pkcs7-mime", string(pem.EncodeToMemory(&pem.Block{Type: "PKCS7", Bytes: der}))), status: -1},
		"odd parameter":   {handler: answer("application/pkcs7-mime; smime-type=certs-only; =", text(der)), status: -1},
		"capital letters": {handler: answer("Application/PKCS7-MIME; smime-type=Certs-Only", text(der)), status: -1},
		"HTML":            {handler: answer("text/html; charset=utf-8", "<html>log in</html>"), status: 200, text: `its content type is "text/html; charset=utf-8"`},
		"no content type": {handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			io.WriteString(w, text(der))
		}, status: 200, text: `its content type is ""`},
		"other smime-type":  {handler: answer("application/pkcs7-mime; smime-type=server-generated-key", text(der)), status: 200, text: "server-generated-key"},
		"garbage":           {handler: answer(certsOnlyType, "MIIB"), status: 200, text: "the answer cannot be used"},
		"oversized":         {handler: answer(certsOnlyType, strings.Repeat("TUlJ", 1<<19)), status: 200, text: "more than 1048576 bytes"},
		"compressed anyway": {handler: status(200, "\x1f\x8b", "Content-Encoding", "gzip", "Content-Type", certsOnlyType), status: 200, text: "not base64"},

		"401":                {handler: status(401, "go\x1b[31m\naway\n"), status: 401, text: "401 Unauthorized: go [31m away", absent: "\x1b"},
		"401 echo":           {handler: status(401, "wrong password hunter2"), status: 401, text: "withheld", absent: "hunter2"},
		"401 echo of header": {handler: status(401, "dXNlcjpodW50ZXIy"), status: 401, text: "withheld", absent: "dXNlcjpodW50ZXIy"},
		"404 HTML":           {handler: status(404, "<html><h1>nope</h1>", "Content-Type", "text/html"), status: 404, text: "404 Not Found", absent: "nope"},
		"400 JSON":           {handler: status(400, `{"error":"bad"}`, "Content-Type", "application/problem+json"), status: 400, text: `{"error":"bad"}`},
		"204":                {handler: status(204, ""), status: 204},
		"202":                {handler: status(202, "", "Retry-After", "60"), status: 202, after: time.Minute},
		"503 date":           {handler: status(503, "", "Date", "Mon, 01 Jun 2026 12:00:00 GMT", "Retry-After", "Mon, 01 Jun 2026 12:10:00 GMT"), status: 503, after: 10 * time.Minute},
		"503":                {handler: status(503, "", "Retry-After", "soon"), status: 503},
		"redirect":           {handler: status(302, "", "Location", "https://user:hunter2@evil.example/x?hunter2"), status: 302, text: `a redirect to "https://evil.example/x", which is not followed`, absent: "hunter2"},
		"redirect 307":       {handler: status(307, "", "Location", "/x"), status: 307, text: "which is not followed"},
		"redirect to secret": {handler: status(302, "", "Location", "https://evil.example/hunter2"), status: 302, text: "withheld", absent: "hunter2"},
		"hung up":            {handler: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, status: 0},
		"half a body": {handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5000")
			w.Header().Set("Content-Type", certsOnlyType)
			io.WriteString(w, text(der))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, status: 0, text: "the answer breaks off"},
		"stalled body": {handler: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
			case <-time.After(5 * time.Second):
			}
		}, status: 0, text: "no complete answer within 1s"},
		"header without end": {handler: func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 100<<10)) }, status: 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				test.handler(w, r)
			})
			c := s.client(t, func(o *est.Options) { o.Username, o.Password, o.Timeout = "user", "hunter2", time.Second })
			_, err := c.SimpleEnroll(context.Background(), []byte("request"))
			if n := s.requests.Load(); n != 1 {
				t.Errorf("the server got %d requests", n)
			}
			if test.status == -1 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			e, ok := errors.AsType[*est.Error](err)
			if !ok {
				t.Fatalf("got %v", err)
			}
			if e.Status != test.status || !strings.HasPrefix(err.Error(), "cannot enrol at "+s.URL+"/.well-known/est/simpleenroll: ") ||
				!strings.Contains(err.Error(), test.text) || strings.Count(err.Error(), "/.well-known/") != 1 {
				t.Errorf("got %d: %v", e.Status, err)
			}
			if test.absent != "" && strings.Contains(fmt.Sprintf("%v %+v %s %s", err, *e, e.Text, e.Location), test.absent) {
				t.Errorf("%q is in %v", test.absent, err)
			}
			if test.after == 0 != e.RetryAfter.IsZero() || test.after != 0 && (time.Until(e.RetryAfter)-test.after).Abs() > 5*time.Second {
				t.Errorf("got Retry-After %v", e.RetryAfter)
			}
		})
	}
}

func TestServerTrust(t *testing.T) {
	other := pki.NewCA(t, "other CA", nil)
	for name, test := range map[string]struct {
		client func(*est.Options)
		server func(*testing.T, *server) tls.Certificate
		as     any
	}{
		"unknown CA":   {client: func(o *est.Options) { o.Roots = x509.NewCertPool() }, as: new(x509.UnknownAuthorityError)},
		"system store": {client: func(o *est.Options) { o.Roots = nil }, as: new(x509.UnknownAuthorityError)},
		"other host": {server: func(t *testing.T, s *server) tls.Certificate {
			return s.ca.Server(t, func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"est.example.com"} })
		}, as: new(x509.HostnameError)},
		"expired": {server: func(t *testing.T, s *server) tls.Certificate {
			return s.ca.Server(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		}, as: new(x509.CertificateInvalidError)},
		"clock of 1970": {client: func(o *est.Options) { o.Time = func() time.Time { return time.Unix(0, 0) } }, as: new(x509.CertificateInvalidError)},
		"of another CA": {server: func(t *testing.T, s *server) tls.Certificate { return other.Server(t) }, as: new(x509.UnknownAuthorityError)},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, answer(certsOnlyType, ""))
			if test.server != nil {
				s.TLS.Certificates = nil // httptest has its own copy of the first certificate
				cert := test.server(t, s)
				s.TLS.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }
			}
			c := s.client(t, func(o *est.Options) {
				o.Username, o.Password = "user", "hunter2"
				if test.client != nil {
					test.client(o)
				}
			})
			_, err := c.SimpleEnroll(context.Background(), []byte("request"))
			if !errors.As(err, test.as) || !errors.As(err, new(*tls.CertificateVerificationError)) {
				t.Errorf("got %v", err)
			}
			if s.requests.Load() != 0 {
				t.Error("the server got the credentials")
			}
		})
	}
}

func TestOldTLS(t *testing.T) {
	s := serve(t, answer(certsOnlyType, ""), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 })
	if _, err := s.client(t).CACerts(context.Background()); err == nil || s.requests.Load() != 0 {
		t.Errorf("TLS 1.1: %v", err)
	}
}

func TestClientCertificate(t *testing.T) {
	root := pki.NewCA(t, "root", nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for name, key := range map[string]crypto.Signer{"ECDSA": pki.NewKey(t), "RSA": pki.NewRSAKey(t)} {
			for _, known := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s %s known=%t", tls.VersionName(version), name, known), func(t *testing.T) {
					identity := pki.TLS(key, root.Issue(t, key.Public(), pkix.Name{CommonName: "idevid"}))
					clients := x509.NewCertPool()
					if known {
						clients.AddCert(root.Cert)
					}
					var seen string
					s := serve(t, func(w http.ResponseWriter, r *http.Request) {
						seen = r.TLS.PeerCertificates[0].Subject.CommonName
						answer(certsOnlyType, text(certsOnly(t, root.Cert)))(w, r)
					}, func(c *tls.Config) {
						c.MinVersion, c.MaxVersion = version, version
						c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, clients
					})
					c := s.client(t, func(o *est.Options) { o.Certificate = &identity })
					_, err := c.CACerts(context.Background())
					if known && (err != nil || seen != "idevid") {
						t.Errorf("the server saw %q: %v", seen, err)
					}
					if alert, ok := errors.AsType[*net.OpError](err); !known && (!ok || alert.Op != "remote error") {
						t.Errorf("got %v, and not the server's alert", err)
					}
				})
			}
		}
	}
}

func TestProxy(t *testing.T) {
	root := pki.NewCA(t, "root", nil).Cert
	s := serve(t, answer(certsOnlyType, text(certsOnly(t, root))))
	var asked, credentials string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked, credentials = r.Method+" "+r.Host, r.Header.Get("Proxy-Authorization")
		if credentials == "" {
			http.Error(w, "who?", http.StatusProxyAuthRequired)
			return
		}
		tunnel(t, w, r.Host)
	}))
	defer proxy.Close()
	through := func(user *url.Userinfo) *est.Client {
		return s.client(t, func(o *est.Options) {
			o.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: strings.TrimPrefix(proxy.URL, "http://"), User: user})
			o.Username, o.Password = "user", "hunter2"
		})
	}

	c := through(url.UserPassword("proxy", "pass"))
	if _, err := c.CACerts(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if asked != "CONNECT "+s.host() || credentials != "Basic "+base64.StdEncoding.EncodeToString([]byte("proxy:pass")) {
		t.Errorf("the proxy was asked %q with %q", asked, credentials)
	}
	if _, err := through(nil).CACerts(context.Background()); err == nil || !strings.Contains(err.Error(), "Proxy Authentication Required") {
		t.Errorf("without credentials: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.client(t).CACerts(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestNew(t *testing.T) {
	for _, test := range []struct{ server, label, text string }{
		{server: "est.example.com"}, {server: "est.example.com:8443", label: "a-b_c.D9"},
		{server: "192.0.2.1"}, {server: "[2001:db8::1]:8443"}, {server: "[2001:db8::1]"}, {server: "2001:db8::1"},
		{server: "", text: "no valid host name"},
		{server: ":443", text: "no valid host name"},
		{server: "https://est.example.com", text: "it is a URL"},
		{server: "est.example.com/x", text: "no valid host name"},
		{server: "user@est.example.com", text: "no valid host name"},
		{server: "a b", text: "no valid host name"},
		{server: "est.example.com:", text: `port ""`},
		{server: "est.example.com:0", text: `port "0"`},
		{server: "est.example.com:65536", text: `port "65536"`},
		{server: "est.example.com:https", text: `port "https"`},
		{server: "a:1:2", text: "it is not host:port"},
		{server: "[x::y]:1", text: "no valid IPv6 address"},
		{server: "a", label: "a/b", text: `'/' at position 2`},
		{server: "a", label: "..", text: "a step in the path"},
		{server: "a", label: "%2e", text: `'%' at position 1`},
		{server: "a", label: "cacerts", text: "the name of an operation"},
	} {
		_, err := est.New(est.Options{Server: test.server, Label: test.label})
		if test.text == "" && err != nil || test.text != "" && (err == nil || !strings.Contains(err.Error(), test.text)) {
			t.Errorf("%q, %q: got %v, want %q in it", test.server, test.label, err, test.text)
		}
	}
	if _, err := est.New(est.Options{Server: "a", Username: "a:b"}); err == nil {
		t.Error("a user name with a colon was accepted")
	}
}

// An address of IPv6 is asked for as such, and its server verified by it. A
// proxy leads to the server, so that the test needs no IPv6 of its host.
func TestIPv6(t *testing.T) {
	s := serve(t, answer(certsOnlyType, text(certsOnly(t, pki.NewCA(t, "root", nil).Cert))))
	var asked string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.Host
		tunnel(t, w, s.host())
	}))
	defer proxy.Close()
	through := func(o *est.Options) {
		o.Server = "[::1]:8443"
		o.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: strings.TrimPrefix(proxy.URL, "http://")})
	}
	if _, err := s.client(t, through).CACerts(context.Background()); err != nil || asked != "CONNECT [::1]:8443" {
		t.Errorf("the proxy was asked %q: %v", asked, err)
	}
}

// tunnel is what a proxy does to CONNECT, until one side ends the connection.
func tunnel(t *testing.T, w http.ResponseWriter, host string) {
	server, err := net.Dial("tcp", host)
	if err != nil {
		t.Error(err)
		return
	}
	defer server.Close()
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	defer client.Close()
	io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
	go io.Copy(server, client)
	io.Copy(client, server)
}

// certsOnly is written by a PKCS#7 module that this package does not use.
func certsOnly(t testing.TB, certs ...*x509.Certificate) []byte {
	t.Helper()
	var all []byte
	for _, c := range certs {
		all = append(all, c.Raw...)
	}
	der, err := pkcs7.DegenerateCertificate(all)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func text(der []byte) string { return base64.StdEncoding.EncodeToString(der) }
