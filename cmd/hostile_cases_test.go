package cmd

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

func answerWith(status, header, body string) func(*hostileServer, *answering, []byte) {
	return func(_ *hostileServer, a *answering, _ []byte) {
		a.say("HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s", status, header, len(body), body)
	}
}

// raw says something that ends with the connection.
func raw(text string) func(*hostileServer, *answering, []byte) {
	return func(_ *hostileServer, a *answering, _ []byte) { a.say("%s", text) }
}

// goingOn says something, and then a piece again and again.
func goingOn(begin, piece string) func(*hostileServer, *answering, []byte) {
	return func(_ *hostileServer, a *answering, _ []byte) {
		if a.say("%s", begin) {
			endlessly(a, bytes.Repeat([]byte(piece), max(1, 4096/len(piece))))
		}
	}
}

// pkcs7 answers with these bytes.
func pkcs7(der func(s *hostileServer, request []byte) []byte) func(*hostileServer, *answering, []byte) {
	return func(s *hostileServer, a *answering, request []byte) {
		text := base64Lines(der(s, request))
		a.say("HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s", certsOnlyHeader, len(text), text)
	}
}

// certificates answers with these certificates.
func certificates(raw func(s *hostileServer, request []byte) [][]byte) func(*hostileServer, *answering, []byte) {
	return pkcs7(func(s *hostileServer, request []byte) []byte { return certsOnly(raw(s, request)...) })
}

// changed answers with the device CA's certificate, or the device's, that was changed.
func changed(t testing.TB, changes ...pki.Change) func(*hostileServer, *answering, []byte) {
	return certificates(func(s *hostileServer, request []byte) [][]byte {
		if len(request) == 0 {
			return [][]byte{pki.NewCAWithKey(t, "device CA", s.ca.Key, nil, changes...).Cert.Raw}
		}
		leaf, err := s.issue(request, changes...)
		if err != nil {
			t.Error(err)
			return nil
		}
		return [][]byte{leaf.Raw}
	})
}

const ok = "HTTP/1.1 200 OK\r\n" + certsOnlyHeader

// answers are wrong in HTTP.
func wrongAnswers() []misbehaviour {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	for range 256 {
		z.Write(make([]byte, 1<<20))
	}
	z.Close()
	junk := strings.Repeat("TUlJ", 1<<19)
	list := []misbehaviour{
		{name: "body without end", mtls: true, answer: goingOn(ok+"Transfer-Encoding: chunked\r\n\r\n", "4\r\nTUlJ\r\n"), exit: byServer, says: "more than 1048576 bytes", hint: noEST},
		{name: "body of 1 GiB", answer: goingOn(ok+"Content-Length: 1073741824\r\n\r\n", "TUlJ"), exit: byServer, says: "more than 1048576 bytes", hint: noEST},
		{name: "white space without end", answer: goingOn(ok+"\r\n", "\r\n \t"), exit: byServer, says: "more than 1048576 bytes", hint: noEST},
		{name: "HTTP 1.0 without a length and without an end", answer: goingOn("HTTP/1.0 200 OK\r\n"+certsOnlyHeader+"\r\n", "AAAA"), exit: byServer, says: "more than 1048576 bytes", hint: noEST},
		{name: "error of 1 GiB", answer: goingOn("HTTP/1.1 401 No\r\nContent-Length: 1073741824\r\n\r\n", "no "), exit: byServer, says: "401 Unauthorized: no no .*…", hint: "does not take"},
		{name: "words between the letters", answer: answerWith("200 OK", certsOnlyHeader, strings.Repeat("A ", 1<<19)), exit: byServer, says: "not a PKCS#7", hint: noEST},

		{name: "body in drips", answer: func(_ *hostileServer, a *answering, _ []byte) { dripping(a, ok+"\r\nT", false) }, exit: temporary, says: timeIsOver, hint: network},
		{name: "header in drips", answer: func(_ *hostileServer, a *answering, _ []byte) { dripping(a, "HTTP/1.1 200 OK\r\nX: x", false) }, exit: temporary, says: timeIsOver, hint: network},
		{name: "no answer", mtls: true, answer: func(_ *hostileServer, a *answering, _ []byte) { silent(a) }, exit: temporary, says: timeIsOver, hint: network},
		{name: "half an answer", answer: func(_ *hostileServer, a *answering, _ []byte) {
			a.say("%sContent-Length: 4000\r\n\r\nTUlJ", ok)
			silent(a)
		}, exit: temporary, says: timeIsOver, hint: network},

		{name: "headers without end", answer: goingOn("HTTP/1.1 200 OK\r\n", "X: y\r\n"), exit: temporary, says: "header"},
		{name: "header of 10 MB", answer: goingOn("HTTP/1.1 200 OK\r\nX: ", "y"), exit: temporary, says: "header"},
		{name: "informational answers without end", answer: goingOn("", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"), exit: temporary, says: "1xx|header"},
		{name: "100 Continue without end", answer: goingOn("", "HTTP/1.1 100 Continue\r\n\r\n"), exit: temporary, says: "1xx|header"},
		{name: "101 Switching Protocols", answer: raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"), exit: byServer, says: "101 Switching Protocols"},
		{name: "chunk extensions without end", answer: goingOn(ok+"Transfer-Encoding: chunked\r\n\r\n4;", "x=y;"), exit: temporary, says: brokenOff},
		{name: "chunks of one byte with extensions", answer: goingOn(ok+"Transfer-Encoding: chunked\r\n\r\n", "1;"+strings.Repeat("x", 2000)+"\r\nT\r\n"), exit: temporary, says: brokenOff},
		{name: "chunk larger than any number", answer: raw(ok + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nTUlJ"), exit: temporary, says: brokenOff},
		{name: "chunk larger than it is", answer: raw(ok + "Transfer-Encoding: chunked\r\n\r\n100\r\nTUlJ\r\n0\r\n\r\n"), exit: temporary, says: brokenOff},
		{name: "chunk smaller than it is", answer: raw(ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nTUlJ\r\n0\r\n\r\n"), exit: temporary, says: brokenOff},
		{name: "no last chunk", answer: raw(ok + "Transfer-Encoding: chunked\r\n\r\n4\r\nTUlJ\r\n"), exit: temporary, says: brokenOff},
		{name: "trailers without end", answer: goingOn(ok+"Transfer-Encoding: chunked\r\n\r\n4\r\nTUlJ\r\n0\r\n", "X: y\r\n"), exit: temporary, says: brokenOff},
		{name: "longer than it says", answer: raw(ok + "Content-Length: 4\r\n\r\nTUlJTUlJ"), exit: byServer, says: "cannot be used", hint: noEST},
		{name: "shorter than it says", answer: raw(ok + "Content-Length: 4000\r\n\r\nTUlJ"), exit: temporary, says: brokenOff},
		{name: "length below zero", answer: raw(ok + "Content-Length: -1\r\n\r\nTUlJ"), exit: temporary, says: "Content-Length"},
		{name: "two lengths", answer: raw(ok + "Content-Length: 4\r\nContent-Length: 8\r\n\r\nTUlJTUlJ"), exit: temporary, says: "Content-Length"},
		{name: "unknown transfer encoding", answer: raw(ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), exit: temporary, says: "transfer encoding"},
		{name: "gzip bomb", answer: answerWith("200 OK", certsOnlyHeader+"Content-Encoding: gzip\r\n", bomb.String()), exit: byServer, says: "not base64", hint: noEST},
		{name: "deflate", answer: answerWith("200 OK", certsOnlyHeader+"Content-Encoding: deflate\r\n", "\x78\x9c\x03\x00"), exit: byServer, says: "not base64", hint: noEST},
		{name: "brotli", answer: answerWith("200 OK", certsOnlyHeader+"Content-Encoding: br\r\n", "\x8b\x02\x80"), exit: byServer, says: "not base64", hint: noEST},
		{name: "HTTP 2", answer: raw("\x00\x00\x00\x04\x00\x00\x00\x00\x00"), exit: temporary, says: "malformed HTTP"},
		{name: "HTTP 2 preface", answer: raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), exit: temporary, says: "malformed HTTP"},
		{name: "HTTP 0.9", answer: raw("<html>hello</html>\r\n"), exit: temporary, says: "malformed HTTP"},
		{name: "status of six digits", answer: raw("HTTP/1.1 200000 OK\r\n\r\n"), exit: temporary, says: "malformed HTTP"},

		{name: "web page", answer: answerWith("200 OK", "Content-Type: text/html\r\n", "<html>\x1b[2Jlog in"), exit: byServer, says: `content type is "text/html"`, hint: noEST},
		{name: "multipart", answer: answerWith("200 OK", "Content-Type: multipart/mixed; boundary=x\r\n", "--x\r\n\r\n--x--"), exit: byServer, says: `content type is "multipart/mixed`, hint: noEST},
		{name: "no content type", answer: answerWith("200 OK", "", "TUlJ"), exit: byServer, says: `content type is ""`, hint: noEST},
		{name: "server-generated key", answer: answerWith("200 OK", "Content-Type: application/pkcs7-mime; smime-type=enveloped-data\r\n", "TUlJ"), exit: byServer, says: "smime-type", hint: noEST},
		{name: "content type of control characters", answer: answerWith("200 OK", "Content-Type: a/\x1b[2Jb\r\n", "TUlJ"), exit: temporary, says: "header"},
		{name: "no content", answer: raw("HTTP/1.1 204 No Content\r\n\r\n"), exit: byServer, says: "204 No Content"},
		{name: "junk", answer: answerWith("200 OK", certsOnlyHeader, "#!@"), exit: byServer, says: "not base64", hint: noEST},
		{name: "junk of 2 MiB", answer: answerWith("200 OK", certsOnlyHeader, junk), exit: byServer, says: "more than 1048576 bytes", hint: noEST},
		{name: "half of base64", answer: answerWith("200 OK", certsOnlyHeader, "MIIB"), exit: byServer, says: "not a PKCS#7", hint: noEST},

		{name: "reset after the request", answer: func(_ *hostileServer, a *answering, _ []byte) { a.below.reset() }, exit: temporary, says: "reset|EOF|broken pipe"},
		{name: "reset in the header", answer: func(_ *hostileServer, a *answering, _ []byte) {
			a.say("HTTP/1.1 200 OK\r\nContent-Ty")
			a.below.reset()
		}, exit: temporary, says: "reset|EOF|malformed MIME header"},
		{name: "reset in the body", mtls: true, answer: func(_ *hostileServer, a *answering, _ []byte) {
			a.say("%sContent-Length: 4000\r\n\r\nTUlJ", ok)
			a.below.reset()
		}, exit: temporary, says: "reset|EOF|broken pipe"},
		{name: "cut off below TLS", answer: func(_ *hostileServer, a *answering, _ []byte) {
			// Without TLS's own end, and without a length: somebody cut it.
			a.say("HTTP/1.0 200 OK\r\n%s\r\nTUlJ", certsOnlyHeader)
			a.below.Close()
		}, exit: temporary, says: "does not say how long it is"},
	}
	// What is longer than the budget ends the run; what is none is as if there were none.
	for name, after := range map[string]struct{ header, ends string }{
		"below zero":                {"Retry-After: -1\r\n", ""},
		"of garbage":                {"Retry-After: \xff soon\r\n", ""},
		"of no time and of an hour": {"Retry-After: 0\r\nRetry-After: 3600\r\n", ""},
		"of an hour and of no time": {"Retry-After: 3600\r\nRetry-After: 0\r\n", "gave up for now.*"},
		"of 10^18 seconds":          {"Retry-After: 1000000000000000000\r\n", "gave up for now.*"},
		"in the year 9999":          {"Retry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\n", "gave up for now.*"},
	} {
		list = append(list,
			misbehaviour{name: "202, Retry-After " + name, answer: answerWith("202 Accepted", after.header, ""), exit: temporary, says: after.ends + "202 Accepted", hint: "approve"},
			misbehaviour{name: "503, Retry-After " + name, answer: answerWith("503 Busy", after.header, ""), exit: temporary, says: after.ends + "503 Service Unavailable", hint: "busy or broken"})
	}
	// Where a redirect leads to is found out when it happens.
	for name, to := range map[string]func(s *hostileServer) string{
		"another port": func(s *hostileServer) string {
			return fmt.Sprintf("https://127.0.0.1:%d/.well-known/est/cacerts", s.elsewhere.port())
		},
		"another host":       func(s *hostileServer) string { return fmt.Sprintf("https://localhost:%d/", s.elsewhere.port()) },
		"plain HTTP":         func(s *hostileServer) string { return fmt.Sprintf("http://127.0.0.1:%d/", s.elsewhere.port()) },
		"another path":       func(*hostileServer) string { return "/elsewhere/cacerts" },
		"a name with secret": func(s *hostileServer) string { return fmt.Sprintf("https://u:p@127.0.0.1:%d/?a#b", s.elsewhere.port()) },
	} {
		for _, status := range []string{"301 Moved", "307 Temporary Redirect"} {
			list = append(list, misbehaviour{name: status[:3] + " to " + name, mtls: name == "another port", answer: func(s *hostileServer, a *answering, _ []byte) {
				a.say("HTTP/1.1 %s\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n", status, to(s))
			}, exit: byServer, says: "a redirect to .*not followed", hint: "redirect is not followed"})
		}
	}
	return list
}

// wrongCertificates are answers in good form that hold what they should not.
func wrongCertificates(t testing.TB) []misbehaviour {
	rsaCA := pki.NewCAWithKey(t, "RSA", pki.NewRSAKey(t), nil)
	of := func(raw ...[]byte) func(*hostileServer, []byte) [][]byte {
		return func(*hostileServer, []byte) [][]byte { return raw }
	}
	// asked is the device's certificate, for who wants to make another one of it.
	asked := func(s *hostileServer, request []byte) *x509.Certificate {
		cert, err := s.issue(request)
		if err != nil {
			t.Error(err)
			return s.ca.Cert
		}
		return cert
	}
	fixed := func(der []byte) func(*hostileServer, []byte) []byte {
		return func(*hostileServer, []byte) []byte { return der }
	}
	large := ofRSA(t, rsaCA, 512<<10, 65537)
	return []misbehaviour{
		{name: "10000 certificates", answer: certificates(of(slices.Repeat([][]byte{{0x30, 0}}, 10000)...)), exit: byServer, says: "certificate number 1 cannot be read", hint: noEST},
		{name: "101 certificates", answer: certificates(of(slices.Repeat([][]byte{rsaCA.Cert.Raw}, 101)...)), exit: byServer, says: "more than 100 certificates", hint: noEST},
		{name: "deep nesting", answer: pkcs7(fixed(nested(100_000, false))), exit: byServer, says: "not a PKCS#7", hint: noEST},
		{name: "deep nesting of indefinite lengths", answer: pkcs7(fixed(nested(100_000, true))), exit: byServer, says: "nested too deeply", hint: noEST},
		{name: "deep nesting in the certificates", answer: certificates(of(nested(50_000, true))), exit: byServer, says: "nested too deeply", hint: noEST},
		{name: "deep nesting in a certificate", answer: certificates(of(nested(30_000, false))), exit: byServer, says: "certificate number 1 cannot be read", hint: noEST},
		{name: "indefinite length without end", answer: pkcs7(fixed([]byte{0x30, 0x80, 6, 1, 1})), exit: byServer, says: "cut off", hint: noEST},
		{name: "length of 4 GiB", answer: pkcs7(fixed([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff})), exit: byServer, says: "too large", hint: noEST},
		{name: "no certificate", answer: certificates(of()), exit: byServer, says: "holds no certificate", hint: noEST},
		{name: "content in the place of certificates", answer: pkcs7(fixed(der(0x30, oidSignedData, der(0xa0, der(0x30, []byte{2, 1, 1}, der(0x31), der(0x30, oidData, der(0xa0, der(4, make([]byte, 500<<10)))), der(0x31)))))),
			exit: byServer, says: "holds no certificate", hint: noEST},
		{name: "not signed data", answer: pkcs7(fixed(der(0x30, oidData, der(0xa0, der(4, []byte("x")))))), exit: byServer, says: "not SignedData", hint: noEST},
		{name: "extension of 700 KB", answer: changed(t, largeExtension(700_000)), exit: byServer, says: "262144 bytes", hint: noEST},
		{name: "serial number of 16 KiB", only: "simpleenroll", answer: certificates(func(s *hostileServer, request []byte) [][]byte {
			device := asked(s, request)
			return [][]byte{rsaCA.Issue(t, device.PublicKey, device.Subject, largeSerial(16<<10)).Raw}
		}), exit: refused, says: "no chain"},
		{name: "240000 names of three bytes", answer: changed(t, manyNames(240_000)), exit: byServer, says: "262144 bytes", hint: noEST},
		{name: "name of 100 KB for a terminal", only: "simpleenroll", answer: changed(t, func(c *x509.Certificate) {
			c.RawSubject, c.Subject = nil, pkix.Name{CommonName: strings.Repeat("\x1b[2J\n", 20_000)}
		}), exit: refused, says: "its subject is", hint: "another name"},
		{name: "RSA key of 16384 bits", answer: certificates(of(ofRSA(t, rsaCA, 16384, 65537))), exit: byServer, says: "RSA key of 16384 bits", hint: noEST},
		{name: "signature of an RSA key of 512 Kbit", only: "simpleenroll", answer: certificates(func(s *hostileServer, request []byte) [][]byte {
			device := asked(s, request)
			return [][]byte{padded(t, rsaCA.Issue(t, device.PublicKey, device.Subject), 512<<10), large}
		}), exit: byServer, says: "RSA key of 524288 bits", hint: noEST},
		{name: "RSA exponent of 1", answer: certificates(of(ofRSA(t, rsaCA, 2048, 1))), exit: refused, says: "another key|no chain"},
		{name: "P-521", answer: certificates(of(ofCurve(t, rsaCA, elliptic.P521()))), exit: refused, says: "another key|no chain"},
		{name: "key of an unknown algorithm", answer: certificates(of(ofUnknownKey(t, rsaCA))), exit: refused, says: "another key|no chain"},
		{name: "CAs that certify each other", answer: certificates(of(loop(t, 100)...)), exit: refused, says: "another key|no chain"},
		{name: "device's certificate among CAs that certify each other", only: "simpleenroll", answer: certificates(func(s *hostileServer, request []byte) [][]byte {
			a, b := pki.NewCA(t, "A", nil), pki.NewCA(t, "B", nil)
			device := asked(s, request)
			raw := [][]byte{a.Issue(t, device.PublicKey, device.Subject).Raw}
			for range 49 {
				raw = append(raw, pki.NewCAWithKey(t, "A", a.Key, b).Cert.Raw, pki.NewCAWithKey(t, "B", b.Key, a).Cert.Raw)
			}
			return raw
		}), exit: refused, says: "no chain"},
		{name: "device's certificate twice with other serial numbers", only: "simpleenroll", answer: certificates(func(s *hostileServer, request []byte) [][]byte {
			return [][]byte{asked(s, request).Raw, asked(s, request).Raw}
		}), exit: refused, says: "cannot accept the certificate", hint: "its operator"},
	}
}

// wrongConnections go wrong before there is anything to answer.
func wrongConnections(t testing.TB, w *hostileWorld) []misbehaviour {
	big := w.strange
	for total := 0; total < 200<<10; total += len(big.Certificate[len(big.Certificate)-1]) {
		big.Certificate = append(big.Certificate[:len(big.Certificate):len(big.Certificate)], w.tls.Cert.Raw)
	}
	huge := big
	huge.Certificate = slices.Concat(big.Certificate, big.Certificate)
	namedKey := pki.NewKey(t)
	named := pki.TLS(namedKey, pki.NewCA(t, "server CA", nil).Issue(t, namedKey.Public(), w.good.Leaf.Subject, manyNames(80_000)))
	shown := func(cert tls.Certificate) func(*hostileServer, *tls.Config) {
		return func(_ *hostileServer, c *tls.Config) { c.Certificates = []tls.Certificate{cert} }
	}
	manyCAs := func(n int) func(*hostileServer, *tls.Config) {
		pool := x509.NewCertPool()
		for i := range n {
			name := der(0x30, der(0x31, der(0x30, []byte{6, 3, 0x55, 4, 3}, der(0x0c, fmt.Appendf(nil, "CA %5d", i)))))
			pool.AddCert(&x509.Certificate{Raw: name, RawSubject: name})
		}
		return func(_ *hostileServer, c *tls.Config) { c.ClientAuth, c.ClientCAs = tls.RequestClientCert, pool }
	}
	// After so many bytes of the server's, the connection is reset.
	resetAfter := func(sent int) func(*hostileServer, *noting) {
		return func(s *hostileServer, conn *noting) {
			_ = tls.Server(&cutting{conn, sent}, &tls.Config{Certificates: []tls.Certificate{s.good}}).Handshake()
			conn.reset()
		}
	}
	return []misbehaviour{
		{name: "reset at once", tcp: func(_ *hostileServer, c *noting) { c.reset() }, unproven: true, exit: temporary, says: "reset|EOF|broken pipe"},
		{name: "reset after ClientHello", tcp: resetAfter(0), unproven: true, exit: temporary, says: "reset|EOF|broken pipe"},
		{name: "reset in ServerHello", tcp: resetAfter(40), unproven: true, exit: temporary, says: "reset|EOF|broken pipe"},
		{name: "reset after ServerHello", mtls: true, tcp: resetAfter(127), unproven: true, exit: temporary, says: "reset|EOF|broken pipe"},
		{name: "reset after the handshake", mtls: true, established: (*noting).reset, exit: temporary, says: "reset|EOF|broken pipe"},
		{name: "silence", tcp: func(_ *hostileServer, c *noting) { silent(c) }, unproven: true, exit: temporary, says: timeIsOver, hint: network},
		{name: "TLS in drips", tcp: func(_ *hostileServer, c *noting) { dripping(c, "\x16\x03\x03\x40\x00\x02\x00\x3f\xfc\x03", false) }, unproven: true, exit: temporary, says: timeIsOver, hint: network},
		{name: "plain HTTP", tcp: func(_ *hostileServer, c *noting) { fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\n\r\nuse TLS\r\n") }, unproven: true, exit: temporary, says: "HTTP response to HTTPS client"},
		{name: "another protocol", tcp: func(_ *hostileServer, c *noting) { fmt.Fprint(c, "220 mail.example ESMTP\r\n"); silent(c) }, unproven: true, exit: temporary, says: "tls"},
		{name: "TLS record of 64 KiB", tcp: func(_ *hostileServer, c *noting) {
			fmt.Fprint(c, "\x16\x03\x03\xff\xff")
			endlessly(c, make([]byte, 4096))
		}, unproven: true, exit: temporary, says: "tls"},
		{name: "TLS 1.0", tls: func(_ *hostileServer, c *tls.Config) { c.MaxVersion = tls.VersionTLS10 }, unproven: true, exit: byServer, says: "protocol version", hint: "must speak TLS 1.2"},
		{name: "TLS that fails at the server", mtls: true, tls: func(_ *hostileServer, c *tls.Config) {
			c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, errors.New("out of order") }
		}, unproven: true, exit: temporary, says: "internal error"},
		{name: "renegotiation", only: "cacerts", tcp: renegotiating(t, w.good), exit: temporary, says: "no renegotiation"},

		{name: "certificate of another CA", mtls: true, tls: shown(w.strange), unproven: true, exit: refused, says: "unknown authority|verif", hint: "server_ca"},
		{name: "self-signed certificate", tls: shown(selfSigned(t)), unproven: true, exit: refused, says: "unknown authority|verif", hint: "server_ca"},
		{name: "certificate of another name", mtls: true, tls: shown(w.tls.Server(t, func(c *x509.Certificate) { c.IPAddresses = nil })), unproven: true, exit: refused, says: "127.0.0.1", hint: "must be a name"},
		{name: "certificate of a client", tls: shown(w.tls.Server(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })), unproven: true, exit: refused, says: "incompatible key usage", hint: "cannot be used"},
		// The clock of the machine of the tests may be no judge.
		{name: "expired certificate", mtls: true, tls: shown(w.tls.Server(t, pki.Years(2001, 2002))), unproven: true, exit: temporary, says: "expired", hint: "not valid today"},
		{name: "chain of 200 KiB", tls: shown(big), unproven: true, exit: refused, says: "unknown authority|verif", hint: "server_ca"},
		{name: "chain of 400 KiB", tls: shown(huge), unproven: true, exit: temporary, says: "exceeds maximum"},
		{name: "certificate of 80000 names", tls: shown(named), unproven: true, exit: refused, says: "unknown authority|verif|not valid for any names", hint: "server"},
		// As many as there is room for in the protocol.
		{name: "names of 2200 CAs", mtls: true, tls: manyCAs(2200), answer: answerWith("401 No", "", "no"), exit: byServer, says: "401 Unauthorized: no", hint: "does not take"},
	}
}

// wrongProxies stand between the device and its server.
func wrongProxies(w *hostileWorld) []misbehaviour {
	// Once it was asked for a tunnel, the proxy says this, and goes on.
	tunnel := func(said string, then func(s *hostileServer, conn *noting)) func(*hostileServer, *noting) {
		return func(s *hostileServer, conn *noting) {
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
				return
			}
			if _, err := io.WriteString(conn, said); err == nil && then != nil {
				then(s, conn)
			}
		}
	}
	const opened = "HTTP/1.1 200 Connection established\r\n\r\n"
	list := []misbehaviour{
		{name: "header without end", tcp: tunnel("HTTP/1.1 200 OK\r\nX: ", func(_ *hostileServer, c *noting) { endlessly(c, make([]byte, 4096)) }), says: "header|EOF|malformed"},
		{name: "headers without end", tcp: tunnel("HTTP/1.1 200 OK\r\n", func(_ *hostileServer, c *noting) { endlessly(c, bytes.Repeat([]byte("X: y\r\n"), 500)) }), says: "header|EOF"},
		{name: "silence", tcp: tunnel("", func(_ *hostileServer, c *noting) { silent(c) }), says: timeIsOver},
		{name: "garbage", tcp: tunnel("\x05\x00\r\n\r\n", nil), says: "malformed HTTP"},
		{name: "reset", tcp: tunnel("", func(_ *hostileServer, c *noting) { c.reset() }), says: "reset|EOF|broken pipe"},
		{name: "password wanted", tcp: tunnel("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n", nil), says: "Proxy Authentication Required"},
		{name: "tunnel that ends", tcp: tunnel(opened, nil), says: "EOF|reset"},
		{name: "plain HTTP in the tunnel", tcp: tunnel(opened+"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", func(_ *hostileServer, c *noting) { silent(c) }), says: timeIsOver + "|HTTP response|tls"},
	}
	for i := range list {
		list[i].exit = temporary
	}
	list = append(list, misbehaviour{name: "its own certificate", tcp: tunnel(opened, func(_ *hostileServer, c *noting) {
		_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{w.strange}}).Handshake()
	}), exit: refused, says: "unknown authority|verif|est.example", hint: "server"})
	for i := range list {
		list[i].name, list[i].proxy, list[i].unproven, list[i].only = "proxy: "+list[i].name, true, true, "cacerts"
	}
	return list
}

// renegotiating hands the connection to openssl, which wants another handshake as soon as it was asked
// something: crypto/tls knows no such server.
func renegotiating(t testing.TB, cert tls.Certificate) func(*hostileServer, *noting) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "server.pem")
	both := append(pki.PEM(cert.Leaf), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	if err := os.WriteFile(file, both, 0o600); err != nil {
		t.Fatal(err)
	}
	return func(_ *hostileServer, conn *noting) {
		cmd := exec.Command("openssl", "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-tls1_2", "-cert", file)
		keys, err := cmd.StdinPipe()
		if err != nil {
			t.Error(err)
			return
		}
		said, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Error(err)
			return
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
		for lines := bufio.NewScanner(said); lines.Scan(); {
			if address, ok := strings.CutPrefix(lines.Text(), "ACCEPT "); ok {
				up, err := net.Dial("tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				defer up.Close()
				go io.Copy(up, conn)
				go func() {
					io.Copy(conn, up)
					conn.Close()
					up.Close()
				}()
			}
			if strings.HasPrefix(lines.Text(), "GET ") {
				io.WriteString(keys, "R\n")
			}
		}
	}
}

func selfSigned(t testing.TB) tls.Certificate {
	t.Helper()
	key := pki.NewKey(t)
	return (&pki.CA{Key: key}).Server(t)
}

// cutting is a connection that ends after so many bytes were written.
type cutting struct {
	*noting
	left int
}

func (c *cutting) Write(b []byte) (int, error) {
	if len(b) > c.left {
		n, _ := c.noting.Write(b[:c.left])
		c.left = 0
		return n, errors.New("that was all")
	}
	c.left -= len(b)
	return c.noting.Write(b)
}
