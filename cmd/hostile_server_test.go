package cmd

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// A hostileServer is an EST server that misbehaves in one way, at one operation, and
// is polite otherwise. Below TLS it speaks bytes, because net/http is too polite. It
// notes what it was told, and when.
type hostileServer struct {
	*hostileWorld
	hostileCase
	listener  net.Listener
	elsewhere *hostileServer // where redirects point to

	mu       sync.Mutex
	open     map[net.Conn]bool
	visits   int
	requests []*http.Request
	raw      bytes.Buffer // what came over the wire, as it came
	shown    int          // client certificates
	visitors sync.WaitGroup
	closed   bool
}

// hostileWorld is what all servers share.
type hostileWorld struct {
	ca      *pki.CA // of the devices
	tls     *pki.CA // of the servers
	good    tls.Certificate
	strange tls.Certificate // of a CA that nobody knows
}

func newHostileWorld(t *testing.T) *hostileWorld {
	w := &hostileWorld{ca: pki.NewCA(t, "device CA", nil), tls: pki.NewCA(t, "server CA", nil)}
	w.good = w.tls.Server(t)
	w.strange = pki.NewCA(t, "server CA", nil).Server(t)
	return w
}

// serve starts a server that ends with the test.
func (w *hostileWorld) serve(t *testing.T, c hostileCase) *hostileServer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &hostileServer{hostileWorld: w, hostileCase: c, listener: listener, open: map[net.Conn]bool{}}
	s.visitors.Go(s.accept)
	t.Cleanup(s.stop)
	return s
}

func (s *hostileServer) port() int { return s.listener.Addr().(*net.TCPAddr).Port }

func (s *hostileServer) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			conn.Close()
			return
		}
		s.visits++
		n := s.visits
		s.open[conn] = true
		s.mu.Unlock()
		s.visitors.Go(func() {
			s.visit(&noting{conn.(*net.TCPConn), s}, n)
			conn.Close()
			s.mu.Lock()
			delete(s.open, conn)
			s.mu.Unlock()
		})
	}
}

func (s *hostileServer) stop() {
	s.listener.Close()
	s.mu.Lock()
	s.closed = true
	for conn := range s.open {
		conn.Close()
	}
	s.mu.Unlock()
	s.visitors.Wait()
}

// noting is a connection of which the server remembers what came.
type noting struct {
	*net.TCPConn
	server *hostileServer
}

func (c *noting) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.server.mu.Lock()
	c.server.raw.Write(b[:n])
	c.server.mu.Unlock()
	return n, err
}

// reset ends a connection as a crash does: with RST and without a word.
func (c *noting) reset() {
	_ = c.SetLinger(0)
	c.Close()
}

// visit serves one connection. What is below HTTP goes wrong at the first
// connection, or at the one for the second operation.
func (s *hostileServer) visit(conn *noting, n int) {
	now := s.operation == "cacerts" || n > 1
	if now && s.tcp != nil {
		s.tcp(s, conn)
		return
	}
	config := &tls.Config{Certificates: []tls.Certificate{s.good}, MinVersion: tls.VersionTLS10}
	if s.method == "est-mtls" {
		config.ClientAuth = tls.RequestClientCert
	}
	config.VerifyPeerCertificate = func(raw [][]byte, _ [][]*x509.Certificate) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.shown += len(raw)
		return nil
	}
	if now && s.misbehaviour.tls != nil {
		s.misbehaviour.tls(s, config)
	}
	c := tls.Server(conn, config)
	if c.Handshake() != nil {
		return
	}
	if now && s.established != nil {
		s.established(conn)
		return
	}
	reader := bufio.NewReader(c)
	for {
		r, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.requests = append(s.requests, r)
		s.mu.Unlock()
		operation := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		if operation == s.operation && s.answer != nil {
			s.answer(s, &answering{c, conn}, body)
			return
		}
		if !s.polite(c, operation, body) {
			return
		}
	}
}

// polite answers as an EST server does; where the next connection is to go wrong,
// it is the last answer of this one.
func (s *hostileServer) polite(w io.Writer, operation string, body []byte) bool {
	certs := []*x509.Certificate{s.ca.Cert}
	if operation == "simpleenroll" {
		leaf, err := s.issue(body)
		if err != nil {
			return false
		}
		certs = append(certs, leaf)
	}
	last := s.tcp != nil || s.misbehaviour.tls != nil || s.established != nil
	fmt.Fprintf(w, "HTTP/1.1 200 OK\r\n%s", certsOnlyHeader)
	if last {
		io.WriteString(w, "Connection: close\r\n")
	}
	text := base64Lines(certsOnly(rawCertificates(certs)...))
	fmt.Fprintf(w, "Content-Length: %d\r\n\r\n%s", len(text), text)
	return !last
}

// issue makes the certificate that was asked for.
func (s *hostileServer) issue(body []byte, changes ...pki.Change) (*x509.Certificate, error) {
	der, err := base64.StdEncoding.AppendDecode(nil, bytes.Join(bytes.Fields(body), nil))
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		RawSubject: csr.RawSubject, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	pki.Years(2010, 2090)(template)
	for _, change := range changes {
		change(template)
	}
	if der, err = x509.CreateCertificate(rand.Reader, template, s.ca.Cert, csr.PublicKey, s.ca.Key); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// answering is the connection on which an answer goes wrong: TLS, and what is
// below it.
type answering struct {
	*tls.Conn
	below *noting
}

// say writes and says whether anybody still listens.
func (a *answering) say(format string, args ...any) bool {
	_, err := fmt.Fprintf(a, format, args...)
	return err == nil
}

// endlessly writes the same until nobody listens any more.
func endlessly(w io.Writer, piece []byte) {
	for {
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}

// dripping writes a byte every now and then, until nobody listens any more or the
// text is over; without an end it goes on with the last byte.
func dripping(w io.Writer, text string, end bool) {
	for i := 0; !end || i < len(text); i++ {
		if _, err := w.Write([]byte{text[min(i, len(text)-1)]}); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond) // how slow it is
	}
}

// silent waits until the client is tired of it.
func silent(c io.Reader) { _, _ = io.Copy(io.Discard, c) }

const certsOnlyHeader = "Content-Type: application/pkcs7-mime; smime-type=certs-only\r\n"

// told is everything that a server was told in a way that somebody could read.
func (s *hostileServer) told() (requests []*http.Request, raw string, visits, shown int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*http.Request(nil), s.requests...), s.raw.String(), s.visits, s.shown
}
