package aziot

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.mozilla.org/pkcs7"
)

// certStore finds certificates and requests them over EST, as aziot-certd does.
type certStore struct {
	home  string
	certd *Certd
	keys  *keyStore
	trust *x509.CertPool // the system's, for all that this process connects to
}

// path is where the certificate of an id is.
func (c *certStore) path(id string) (string, error) {
	preloaded, ok := c.certd.PreloadedCerts[id]
	if !ok {
		return filepath.Join(c.home, "certs", fileName(id)+".cer"), nil
	}
	link, ok := preloaded.(string)
	if !ok {
		return "", fmt.Errorf("[preloaded_certs] %s is a list of ids", id)
	}
	return FilePath(link)
}

// load reads the chain of an id, leaf first.
func (c *certStore) load(id string) ([]*x509.Certificate, error) {
	path, err := c.path(id)
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}
	var chain []*x509.Certificate
	if err == nil {
		chain, err = parseChain(data)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot load certificate %s: %w", id, err)
	}
	return chain, nil
}

func parseChain(data []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, cert)
	}
	if len(chain) == 0 {
		return nil, errors.New("no PEM certificate in it")
	}
	return chain, nil
}

// issue requests the certificate of an id with the options that certd has for it.
func (c *certStore) issue(ctx context.Context, id string, key crypto.Signer, request *x509.CertificateRequest) error {
	options, _ := c.certd.Issuance[id].(CertdCert)
	return c.issueWith(ctx, id, options, key, request)
}

// issueWith requests a certificate for a key over EST and stores it: what simpleenroll answered,
// then what cacerts answered.
func (c *certStore) issueWith(ctx context.Context, id string, options CertdCert, key crypto.Signer, request *x509.CertificateRequest) error {
	if err := c.enrol(ctx, id, options, key, request); err != nil {
		return fmt.Errorf("cannot create certificate %s: %w", id, err)
	}
	return nil
}

func (c *certStore) enrol(ctx context.Context, id string, options CertdCert, key crypto.Signer, request *x509.CertificateRequest) error {
	if options.Method != "est" {
		return fmt.Errorf("method %q is none that this stand-in requests (est)", options.Method)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, request, key)
	if err != nil {
		return err
	}
	base, client, auth, err := c.client(ctx, id, options)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()

	// Both requests at the same time, and with the same authentication.
	var both sync.WaitGroup
	var leaf, cas []*x509.Certificate
	var leafErr, casErr error
	both.Go(func() {
		leaf, leafErr = estRequest(ctx, client, auth, http.MethodPost, base+"/simpleenroll", encodeLines(csr))
	})
	both.Go(func() {
		cas, casErr = estRequest(ctx, client, auth, http.MethodGet, base+"/cacerts", nil)
	})
	both.Wait()
	if err := errors.Join(leafErr, casErr); err != nil {
		return err
	}
	if len(leaf) == 0 || !sameKey(leaf[0].PublicKey, key.Public()) {
		return errors.New("the first certificate of the EST answer is not for the key")
	}
	var chain bytes.Buffer
	for _, cert := range append(leaf, cas...) {
		if err := pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}); err != nil {
			return err
		}
	}
	path, err := c.path(id)
	if err != nil {
		return err
	}
	return replaceFile(path, chain.Bytes(), 0o644)
}

// client returns the URL of the EST server for an id, and a client that has what it needs to be
// trusted there.
func (c *certStore) client(ctx context.Context, id string, options CertdCert) (string, *http.Client, CertdAuth, error) {
	est, _ := c.certd.Issuance["est"].(CertdEST)
	auth := est.CertdAuth
	if options.CertdAuth != (CertdAuth{}) {
		auth = options.CertdAuth
	}
	if auth == (CertdAuth{}) {
		return "", nil, auth, errors.New("EST auth is not configured")
	}
	base := options.URL
	for _, name := range []string{id, "default"} {
		if base == "" {
			base = est.URLs[name]
		}
	}
	if !strings.HasPrefix(base, "https://") {
		return "", nil, auth, fmt.Errorf("EST URL %q is not https", base)
	}
	config := &tls.Config{RootCAs: c.trust.Clone(), MinVersion: tls.VersionTLS12}
	for _, id := range est.TrustedCerts {
		chain, err := c.load(id)
		if err != nil {
			return "", nil, auth, err
		}
		for _, cert := range chain {
			config.RootCAs.AddCert(cert)
		}
	}
	if auth.IdentityCert != "" {
		pair, err := c.estIdentity(ctx, id, options, auth)
		if err != nil {
			return "", nil, auth, err
		}
		config.Certificates = []tls.Certificate{*pair}
	}
	return strings.TrimSuffix(base, "/"), newHTTPClient(config), auth, nil
}

// estIdentity is the certificate that authenticates at the EST server. With a bootstrap identity,
// certd requests one of its own with that first.
func (c *certStore) estIdentity(ctx context.Context, id string, options CertdCert, auth CertdAuth) (*tls.Certificate, error) {
	if id == auth.IdentityCert {
		return c.pair(auth.BootstrapCert, auth.BootstrapKey)
	}
	pair, err := c.pair(auth.IdentityCert, auth.IdentityKey)
	if err == nil || auth.BootstrapCert == "" {
		return pair, err
	}
	key, err := c.keys.create(auth.IdentityKey, algorithmEC)
	if err != nil {
		return nil, err
	}
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 2}}) // clientAuth
	if err != nil {
		return nil, err
	}
	bootstrap, err := c.load(auth.BootstrapCert)
	if err != nil {
		return nil, err
	}
	options.CertdAuth = auth
	err = c.issueWith(ctx, auth.IdentityCert, options, key, &x509.CertificateRequest{
		RawSubject:      bootstrap[0].RawSubject,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: usage}},
	})
	if err != nil {
		return nil, err
	}
	return c.pair(auth.IdentityCert, auth.IdentityKey)
}

// pair joins a certificate chain and its key for TLS.
func (c *certStore) pair(certID, keyID string) (*tls.Certificate, error) {
	chain, err := c.load(certID)
	if err != nil {
		return nil, err
	}
	key, err := c.keys.load(keyID)
	if err != nil {
		return nil, err
	}
	if !sameKey(chain[0].PublicKey, key.Public()) {
		return nil, fmt.Errorf("cannot use certificate %s: the first in its file is not for key %s", certID, keyID)
	}
	pair := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, cert := range chain {
		pair.Certificate = append(pair.Certificate, cert.Raw)
	}
	return pair, nil
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// newHTTPClient makes a client with the proxy of the environment. It follows no redirects, and
// unlike http.ProxyFromEnvironment it uses the proxy for loopback too: a lab is there.
func newHTTPClient(config *tls.Config) *http.Client {
	return &http.Client{
		Timeout: 70 * time.Second, // cloud_timeout_sec
		Transport: &http.Transport{
			TLSClientConfig:   config,
			ForceAttemptHTTP2: true,
			Proxy: func(*http.Request) (*url.URL, error) {
				for _, name := range []string{"https_proxy", "HTTPS_PROXY"} {
					if v := os.Getenv(name); v != "" {
						return url.Parse(v)
					}
				}
				return nil, nil
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// estRequest takes 200 with PKCS#7, and nothing else: 202 is an error for certd.
func estRequest(ctx context.Context, client *http.Client, auth CertdAuth, method, url string, body []byte) ([]*x509.Certificate, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if auth.Username != "" {
		r.SetBasicAuth(auth.Username, auth.Password)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/pkcs10")
		r.Header.Set("Content-Transfer-Encoding", "base64")
	}
	answer, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: EST server answered %s: %s", url, answer.Status, strings.TrimSpace(string(data)))
	}
	const want = "application/pkcs7-mime"
	if kind := answer.Header.Get("Content-Type"); kind != want && !strings.HasPrefix(kind, want+";") {
		return nil, fmt.Errorf("%s: EST server answered with content type %q", url, kind)
	}
	certs, err := parsePKCS7(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	return certs, nil
}

// pkcs7Mutex is for pkcs7.Parse, which counts its nesting in a global variable.
var pkcs7Mutex sync.Mutex

// parsePKCS7 reads PEM, or base64 with any white space in it.
func parsePKCS7(data []byte) ([]*x509.Certificate, error) {
	var der []byte
	if block, _ := pem.Decode(data); block != nil {
		der = block.Bytes
	} else {
		var err error
		if der, err = base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(data)), "")); err != nil {
			return nil, fmt.Errorf("answer is neither PEM nor base64: %w", err)
		}
	}
	pkcs7Mutex.Lock()
	defer pkcs7Mutex.Unlock()
	p, err := pkcs7.Parse(der)
	if err != nil {
		return nil, fmt.Errorf("answer is no PKCS#7: %w", err)
	}
	return p.Certificates, nil
}

// encodeLines is base64 in lines of 64 characters.
func encodeLines(der []byte) []byte {
	var b bytes.Buffer
	for line := base64.StdEncoding.EncodeToString(der); line != ""; {
		n := min(64, len(line))
		b.WriteString(line[:n] + "\n")
		line = line[n:]
	}
	return b.Bytes()
}
