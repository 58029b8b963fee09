package est

import (
	"bufio"
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/smallstep/pkcs7"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/limit"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

func FuzzDecode(f *testing.F) {
	cert := pki.NewCA(f, "x", nil).Cert
	der, err := pkcs7.DegenerateCertificate(cert.Raw)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encode(der))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "PKCS7", Bytes: der}))
	f.Add(encode(open(tagSequence, tlv(tagOID, oidSignedData), open(tagContext0, open(tagSequence, open(tagContext0, cert.Raw))))))
	f.Add([]byte("MIA="))
	f.Fuzz(func(t *testing.T, body []byte) {
		defer limit.Time(t, 5*time.Second)()
		certs, err := decode(body)
		if err == nil && (len(certs) == 0 || len(certs) > maxCertificates) {
			t.Errorf("got %d certificates", len(certs))
		}
	})
}

// FuzzParseCertsOnly spares the fuzzer from finding out about base64.
func FuzzParseCertsOnly(f *testing.F) {
	cert := pki.NewCA(f, "x", nil).Cert
	der, err := pkcs7.DegenerateCertificate(cert.Raw)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add(open(tagSequence, tlv(tagOID, oidSignedData), open(tagContext0, open(tagSequence, open(tagContext0, cert.Raw)))))
	f.Fuzz(func(t *testing.T, der []byte) {
		defer limit.Time(t, 5*time.Second)()
		certs, err := parseCertsOnly(der)
		if err != nil {
			return
		}
		if len(certs) == 0 || len(certs) > maxCertificates {
			t.Errorf("got %d certificates", len(certs))
		}
		for _, c := range certs {
			if !bytes.Contains(der, c.Raw) {
				t.Error("a certificate that is not in the answer")
			}
		}
	})
}

// replay is a server that answers the same bytes to every request.
type replay []byte

func (r replay) RoundTrip(request *http.Request) (*http.Response, error) {
	return http.ReadResponse(bufio.NewReader(bytes.NewReader(r)), request)
}

// FuzzAnswer: a whole answer, of which everything is the server's to choose. What a
// caller gets is certificates within the bounds, or an Error that is fit for a line of the
// journal, tells no secret, and asks for no time outside of what a clock can hold.
func FuzzAnswer(f *testing.F) {
	der, err := pkcs7.DegenerateCertificate(pki.NewCA(f, "x", nil).Cert.Raw)
	if err != nil {
		f.Fatal(err)
	}
	body := encode(der)
	for _, answer := range []string{
		fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/pkcs7-mime; smime-type=certs-only\r\nContent-Length: %d\r\n\r\n%s", len(body), body),
		fmt.Sprintf("HTTP/1.0 200 OK\r\nContent-Type: application/pkcs7-mime\r\n\r\n%s", body),
		"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\n<html\r\n0\r\nTrailer: x\r\n\r\n",
		"HTTP/1.1 202 Accepted\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 503 Busy\r\nDate: Mon, 01 Jun 2026 12:00:00 GMT\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\nRetry-After: 1\r\n\r\nlater",
		"HTTP/1.1 302 Found\r\nLocation: https://user:hunter2@other.example/a?hunter2#hunter2\r\n\r\n",
		"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/problem+json\r\n\r\n{\"detail\":\"hunter2 and \x1b[2J\"}",
	} {
		f.Add([]byte(answer))
	}
	client, err := New(Options{Server: "est.example", Username: "user", Password: "hunter2", Secret: "s3cr3t-value"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		defer limit.Time(t, 5*time.Second)()
		c := *client
		c.http.Transport = replay(answer)
		begin := time.Now()
		certs, err := c.CACerts(context.Background())
		if err == nil {
			if len(certs) == 0 || len(certs) > maxCertificates {
				t.Errorf("got %d certificates", len(certs))
			}
			return
		}
		e, ok := errors.AsType[*Error](err)
		if !ok || certs != nil {
			t.Fatalf("%d certificates, %T: %v", len(certs), err, err)
		}
		// What net/http and mime say of an answer quotes it, and is in quotes then.
		if e.Err == nil && strings.ContainsFunc(e.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("an error for no terminal: %q", e.Error())
		}
		if len(e.Error()) > 4096 {
			t.Errorf("an error of %d bytes", len(e.Error()))
		}
		if strings.Contains(e.Text+e.Location, "hunter2") || strings.Contains(e.Text+e.Location, "s3cr3t-value") {
			t.Errorf("a secret is in %v", e)
		}
		if !e.RetryAfter.IsZero() && (e.RetryAfter.Before(begin) || e.RetryAfter.After(time.Now().Add(maxDelay))) {
			t.Errorf("asked again at %s", e.RetryAfter)
		}
	})
}

// FuzzPrintable: whatever a server says becomes one short line that commands no terminal.
func FuzzPrintable(f *testing.F) {
	f.Add("one\r\ntwo\x1b[2J")
	f.Add("\xff\u202e\u0085")
	f.Fuzz(func(t *testing.T, s string) {
		line := printable(s)
		if strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) || len([]rune(line)) > maxText+1 {
			t.Errorf("%q became %q", s, line)
		}
		if again := printable(line); len([]rune(line)) <= maxText && again != line {
			t.Errorf("%q becomes %q at the second time", line, again)
		}
	})
}
