package cloud

import (
	"bytes"
	"context"
	"crypto/x509"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestFaults has a case for each kind: what the client gets is what the kind's name says.
func TestFaults(t *testing.T) {
	t.Parallel()
	l := startLab(t)
	key := newKey(t)
	status := func(want int) func(*testing.T, reply) {
		return func(t *testing.T, r reply) {
			if r.status != want || r.header.Get("Retry-After") != "7" {
				t.Errorf("%d %v", r.status, r.header)
			}
		}
	}
	cert := func(check func(leaf *x509.Certificate) bool) func(*testing.T, reply) {
		return func(t *testing.T, r reply) {
			if leaf := r.certificates(t)[0]; !check(leaf) {
				t.Errorf("certificate %+v", leaf)
			}
		}
	}
	chain := func(want ...string) func(*testing.T, reply) {
		return func(t *testing.T, r reply) {
			var got []string
			for _, c := range r.certificates(t) {
				got = append(got, c.Subject.CommonName)
			}
			if !slices.Equal(got, want) {
				t.Errorf("chain %q, not %q", got, want)
			}
		}
	}
	checks := map[string]func(*testing.T, reply){
		"202": status(202), "401": status(401), "429": status(429), "503": status(503),
		"html": func(t *testing.T, r reply) {
			if r.status != 200 || !strings.HasPrefix(r.header.Get("Content-Type"), "text/html") {
				t.Errorf("%d %v", r.status, r.header)
			}
		},
		"oversize": func(t *testing.T, r reply) {
			if r.status != 200 || len(r.body) != 2<<20 {
				t.Errorf("%d, %d bytes", r.status, len(r.body))
			}
		},
		"drop": func(t *testing.T, r reply) {
			if r.status != 200 || r.err == nil || len(r.body) == 0 {
				t.Errorf("%d, %d bytes, %v", r.status, len(r.body), r.err)
			}
		},
		"no-crlf-base64": func(t *testing.T, r reply) {
			if r.certificates(t); bytes.ContainsAny(r.body, "\r\n") || r.header.Get("Content-Transfer-Encoding") != "" {
				t.Errorf("%v %s", r.header, r.body)
			}
		},
		"pem-body": func(t *testing.T, r reply) {
			if r.certificates(t); !bytes.HasPrefix(r.body, []byte("-----BEGIN PKCS7-----")) {
				t.Errorf("%s", r.body)
			}
		},
		"other-key":     cert(func(c *x509.Certificate) bool { return !samePublic(c.PublicKey, key.Public()) }),
		"ca-cert":       cert(func(c *x509.Certificate) bool { return c.IsCA && c.BasicConstraintsValid }),
		"wrong-cn":      cert(func(c *x509.Certificate) bool { return c.Subject.CommonName != "device-1" }),
		"no-clientauth": cert(func(c *x509.Certificate) bool { return !hasClientAuth(c) && len(c.ExtKeyUsage) == 1 }),
		"due": cert(func(c *x509.Certificate) bool {
			return time.Since(c.NotBefore) > 80*24*time.Hour && time.Until(c.NotAfter) > 9*24*time.Hour
		}),
		"expired": cert(func(c *x509.Certificate) bool {
			return c.NotAfter.Before(time.Now().Add(-time.Hour)) && c.NotBefore.Before(c.NotAfter)
		}),
		"reversed-chain": chain("tpm2cloud-lab ldevid CA", "device-1"),
		"shuffled-chain": chain("tpm2cloud-lab ldevid root", "device-1", "tpm2cloud-lab ldevid CA"),
	}
	for kind := range faultKinds {
		if kind == "stall" {
			continue // TestStall
		}
		t.Run(kind, func(t *testing.T) {
			check := checks[kind]
			if check == nil {
				t.Fatal("this kind has no test")
			}
			l.setFault(`{"label":"ldevid","kind":"` + kind + `","count":1,"retry_after":"7"}`)
			enrol := l.enrolment("ldevid", newCSR(t, key, "device-1"))
			if r := l.do(enrol.withBasic("x", "y")); r.status != 401 || r.header.Get("Retry-After") != "" {
				t.Errorf("the fault hit a request that would have failed anyway: %d", r.status)
			}
			good := enrol.withBasic(l.Username, l.Password)
			r := l.do(good)
			check(t, r)
			if e := l.lastEvent(); e.Fault != kind || e.Status != r.status {
				t.Errorf("logged %+v", e)
			}
			if leaf := l.do(good).certificates(t)[0]; leaf.Subject.CommonName != "device-1" || !samePublic(leaf.PublicKey, key.Public()) {
				t.Error("the fault came twice")
			}
		})
	}
}

// TestStall waits for the beginning of an answer, and then in vain.
func TestStall(t *testing.T) {
	t.Parallel()
	l := startLab(t, Fault{Kind: "stall", Operation: "cacerts"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", l.ESTURL+"/ldevid/cacerts", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := l.client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	buffer := make([]byte, 1<<16)
	n, err := answer.Body.Read(buffer)
	if err != nil || n == 0 || int64(n) >= answer.ContentLength {
		t.Fatalf("%d of %d bytes, %v", n, answer.ContentLength, err)
	}
	cancel()
	if _, err := answer.Body.Read(buffer); err == nil {
		t.Error("the answer went on")
	}
}

// TestControl checks the table behind the control endpoint.
func TestControl(t *testing.T) {
	t.Parallel()
	l := startLab(t, Fault{Label: "idevid", Kind: "503"})
	fault := func(method, body string) reply {
		return l.do(request{method: method, url: l.ControlURL + "/fault", body: []byte(body)})
	}
	for _, wrong := range []string{
		``, `x`, `{"kind":"nonsense"}`, `{"kind":"202","label":"nonsense"}`, `{"kind":"202","operation":"nonsense"}`,
		`{"kind":"202","count":-1}`, `{"kind":"202","skip":-1}`, `{"kind":"202","nonsense":1}`, `{"kind":"expired","operation":"cacerts"}`, `{"kind":"html","label":"dps"}`,
	} {
		if r := fault("POST", wrong); r.status != http.StatusBadRequest {
			t.Errorf("%s: %d", wrong, r.status)
		}
	}
	enrol := func(label string) int {
		return l.do(l.enrolment(label, newCSR(t, newKey(t), "device-1")).withBasic(l.Username, l.Password)).status
	}
	// A sequence: twice 503, then 202 at any label, then the endless one of the start.
	l.setFault(`{"label":"ldevid","kind":"503","skip":1,"count":2}`)
	l.setFault(`{"kind":"202","count":1}`)
	for i, want := range []int{200, 503, 503, 202, 200} {
		if got := enrol("ldevid"); got != want {
			t.Errorf("enrolment %d: %d, not %d", i, got, want)
		}
	}
	for range 3 {
		if got := enrol("idevid"); got != 503 {
			t.Errorf("idevid: %d", got)
		}
	}
	if r := fault("GET", ""); strings.TrimSpace(string(r.body)) != `[{"label":"idevid","kind":"503"}]` {
		t.Errorf("list is %s", r.body)
	}
	if r := fault("DELETE", ""); r.status != 204 || enrol("idevid") != 200 {
		t.Error("not cleared")
	}
	// Only the operation that is named.
	l.setFault(`{"kind":"429","operation":"cacerts"}`)
	if got := enrol("ldevid"); got != 200 {
		t.Errorf("simpleenroll: %d", got)
	}
	if r := l.do(request{method: "GET", url: l.ESTURL + "/ldevid/cacerts"}); r.status != 429 {
		t.Errorf("cacerts: %d", r.status)
	}
}
