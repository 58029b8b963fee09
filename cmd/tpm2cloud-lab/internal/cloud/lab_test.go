package cloud

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"go.mozilla.org/pkcs7"
)

// lab is a running lab, and what a client of it needs.
type lab struct {
	Description
	t     *testing.T
	roots *x509.CertPool
}

func startLab(t *testing.T, faults ...Fault) *lab {
	t.Helper()
	return startLabIn(t, t.TempDir(), faults...)
}

func startLabIn(t *testing.T, dir string, faults ...Fault) *lab {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- Serve(ctx, Options{
			Dir: dir, Listen: "127.0.0.1:0", LDevIDDays: 3650, OperationalDays: 90, Faults: faults,
		}, func(path string) { ready <- path })
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case err := <-ended:
		ended <- err
		t.Fatal("the lab ended:", err)
		return nil
	case path := <-ready:
		l := &lab{t: t, roots: x509.NewCertPool()}
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, &l.Description)
		}
		if err != nil {
			t.Fatal(err)
		}
		ca, err := os.ReadFile(l.ServerCA)
		if err != nil || !l.roots.AppendCertsFromPEM(ca) {
			t.Fatal("no server CA:", err)
		}
		return l
	}
}

// client makes an HTTP client that shows the given chain, if any.
func (l *lab) client(chain ...tls.Certificate) *http.Client {
	c := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: l.roots, Certificates: chain},
	}}
	l.t.Cleanup(c.CloseIdleConnections)
	return c
}

// request is one request to the lab.
type request struct {
	method, url string
	body        []byte
	header      http.Header
	chain       []tls.Certificate
}

// reply is what came back.
type reply struct {
	status int
	header http.Header
	body   []byte
	err    error // while reading the body
}

func (l *lab) do(r request) reply {
	l.t.Helper()
	req, err := http.NewRequestWithContext(l.t.Context(), r.method, r.url, bytes.NewReader(r.body))
	if err != nil {
		l.t.Fatal(err)
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	answer, err := l.client(r.chain...).Do(req)
	if err != nil {
		l.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return reply{answer.StatusCode, answer.Header, body, err}
}

// setFault sets a fault at the control endpoint.
func (l *lab) setFault(text string) {
	l.t.Helper()
	if r := l.do(request{method: "POST", url: l.ControlURL + "/fault", body: []byte(text)}); r.status != http.StatusNoContent {
		l.t.Fatalf("fault %s: %d %s", text, r.status, r.body)
	}
}

// events reads the log.
func (l *lab) events() []Event {
	l.t.Helper()
	f, err := os.Open(l.Log)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	var events []Event
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			l.t.Fatalf("%s: %v", lines.Bytes(), err)
		}
		events = append(events, e)
	}
	return events
}

func (l *lab) lastEvent() Event {
	l.t.Helper()
	events := l.events()
	if len(events) == 0 {
		l.t.Fatal("the log is empty")
	}
	return events[len(events)-1]
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRSAKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCSR(t *testing.T, key crypto.Signer, commonName string) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: commonName},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// enrolment is a simpleenroll request with a CSR.
func (l *lab) enrolment(label string, csr []byte) request {
	return request{
		method: "POST", url: l.ESTURL + "/" + label + "/simpleenroll",
		body: []byte(base64.StdEncoding.EncodeToString(csr)),
		header: http.Header{
			"Content-Type":              {"application/pkcs10"},
			"Content-Transfer-Encoding": {"base64"},
		},
	}
}

func (r request) withBasic(user, password string) request {
	r.header = r.header.Clone()
	r.header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
	return r
}

// pkcs7Mutex is for pkcs7.Parse, which counts its nesting in a global variable.
var pkcs7Mutex sync.Mutex

// certificates are those of an EST answer, in order.
func (r reply) certificates(t *testing.T) []*x509.Certificate {
	t.Helper()
	if r.status != http.StatusOK {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	der, err := base64.StdEncoding.DecodeString(string(r.body))
	if block, _ := pem.Decode(r.body); block != nil {
		der, err = block.Bytes, nil
	}
	if err != nil {
		t.Fatal(err)
	}
	pkcs7Mutex.Lock()
	defer pkcs7Mutex.Unlock()
	p, err := pkcs7.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	return p.Certificates
}

// identity enrols a new key and returns it with its chain.
func (l *lab) identity(label, commonName string) tls.Certificate {
	l.t.Helper()
	key := newKey(l.t)
	r := l.do(l.enrolment(label, newCSR(l.t, key, commonName)).withBasic(l.Username, l.Password))
	return pairOf(key, r.certificates(l.t)...)
}

func pairOf(key crypto.Signer, chain ...*x509.Certificate) tls.Certificate {
	pair := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return pair
}

// issuer is the certificate and key of a CA, as `ca create` left them.
func (l *lab) issuer(caFile string) (*x509.Certificate, crypto.Signer) {
	l.t.Helper()
	chain, err := readCertificates(caFile)
	if err != nil {
		l.t.Fatal(err)
	}
	key, err := readKey(strings.TrimSuffix(caFile, ".pem") + ".key")
	if err != nil {
		l.t.Fatal(err)
	}
	return chain[0], key
}
