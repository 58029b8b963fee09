package cloud

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestEnrol enrols at each label with each authentication, as a chain of identities.
func TestEnrol(t *testing.T) {
	t.Parallel()
	l := startLab(t)
	basic := func(r request) request { return r.withBasic(l.Username, l.Password) }
	secret := func(r request) request { r.header.Set("Secret-Value", l.Secret); return r }
	idevid, ldevid := l.identity("idevid", "board-1"), l.identity("ldevid", "device-1")
	mtls := func(pair tls.Certificate) func(request) request {
		return func(r request) request { r.chain = []tls.Certificate{pair}; return r }
	}
	for _, test := range []struct {
		name, label, auth string
		with              func(request) request
		rsa               bool
	}{
		{"basic", "idevid", "basic", basic, false},
		{"secret", "idevid", "secret", secret, true},
		{"secret", "ldevid", "secret", secret, false},
		{"idevid", "ldevid", "mtls", mtls(idevid), true},
		{"basic", "operational", "basic", basic, true},
		{"ldevid", "operational", "mtls", mtls(ldevid), false},
	} {
		t.Run(test.label+"-"+test.name, func(t *testing.T) {
			var key crypto.Signer = newKey(t)
			if test.rsa {
				key = newRSAKey(t)
			}
			chain := l.do(test.with(l.enrolment(test.label, newCSR(t, key, "device-1")))).certificates(t)
			e := l.lastEvent()
			if len(chain) != 2 {
				t.Fatalf("%d certificates, not leaf and issuing CA", len(chain))
			}
			checkProfile(t, test.label, chain, test.rsa)
			if !samePublic(chain[0].PublicKey, key.Public()) {
				t.Error("not for the key")
			}
			want := Event{
				Time: e.Time, Event: "enrol", Listener: "est", Operation: "simpleenroll", Label: test.label, Auth: test.auth,
				Subject: "CN=device-1", Serial: chain[0].SerialNumber.Text(16), Key: e.Key, Status: 200, Remote: e.Remote,
			}
			if e != want || !strings.HasPrefix(e.Key, map[bool]string{true: "RSA-2048", false: "ECDSA-256"}[test.rsa]) {
				t.Errorf("logged %+v", e)
			}
			opensslVerify(t, l, test.label, chain)
		})
	}
}

func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

func checkProfile(t *testing.T, label string, chain []*x509.Certificate, isRSA bool) {
	t.Helper()
	leaf := chain[0]
	usage := x509.KeyUsageDigitalSignature
	if isRSA && label != "idevid" {
		usage |= x509.KeyUsageKeyEncipherment
	}
	if leaf.IsCA || leaf.KeyUsage != usage {
		t.Errorf("CA %v, key usage %b", leaf.IsCA, leaf.KeyUsage)
	}
	days := map[string]int{"ldevid": 3650, "operational": 90}[label]
	switch {
	case label == "idevid":
		if !leaf.NotAfter.Equal(time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)) || len(leaf.ExtKeyUsage) != 0 {
			t.Errorf("IDevID until %v with %v", leaf.NotAfter, leaf.ExtKeyUsage)
		}
	case !leaf.NotAfter.Equal(leaf.NotBefore.AddDate(0, 0, days)):
		t.Errorf("from %v until %v", leaf.NotBefore, leaf.NotAfter)
	case !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}):
		t.Errorf("extended key usage %v", leaf.ExtKeyUsage)
	}
}

// opensslVerify asks another implementation whether the chain is one.
func opensslVerify(t *testing.T, l *lab, label string, chain []*x509.Certificate) {
	t.Helper()
	dir := t.TempDir()
	leaf, rest := filepath.Join(dir, "leaf.pem"), filepath.Join(dir, "rest.pem")
	for path, certs := range map[string][]*x509.Certificate{leaf: chain[:1], rest: chain[1:]} {
		if err := os.WriteFile(path, encodeCertificates(certs...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"verify", "-x509_strict", "-CAfile", map[string]string{
		"idevid": l.IDevIDCA, "ldevid": l.LDevIDCA, "operational": l.OperationalCA,
	}[label], "-untrusted", rest}
	if label != "idevid" {
		args = append(args, "-purpose", "sslclient")
	}
	if out, err := exec.CommandContext(t.Context(), "openssl", append(args, leaf)...).CombinedOutput(); err != nil {
		t.Errorf("openssl: %v\n%s", err, out)
	}
}

// TestRefused has one case for each reason to refuse an enrolment.
func TestRefused(t *testing.T) {
	t.Parallel()
	l := startLab(t)
	idevid, ldevid := l.identity("idevid", "board-1"), l.identity("ldevid", "device-1")
	good := newCSR(t, newKey(t), "device-1")
	broken := slices.Clone(good)
	broken[len(broken)-1] ^= 1 // in the signature
	mtls := func(r request, pair tls.Certificate) request { r.chain = []tls.Certificate{pair}; return r }
	secret := func(r request, value string) request { r.header.Set("Secret-Value", value); return r }
	basic := func(r request) request { return r.withBasic(l.Username, l.Password) }
	to := func(r request, path string) request { r.url = l.ESTURL + path; return r }

	for _, test := range []struct {
		name   string
		r      request
		status int
		auth   string
	}{
		{"nothing", l.enrolment("ldevid", good), 401, "none"},
		{"wrong password", l.enrolment("ldevid", good).withBasic(l.Username, "x"), 401, "basic"},
		{"wrong user", l.enrolment("ldevid", good).withBasic("x", l.Password), 401, "basic"},
		{"wrong secret", secret(l.enrolment("ldevid", good), "x"), 401, "secret"},
		{"wrong password, right certificate", mtls(l.enrolment("ldevid", good), idevid).withBasic("x", "y"), 401, "basic"},
		{"LDevID for an LDevID", mtls(l.enrolment("ldevid", good), ldevid), 401, "mtls"},
		{"IDevID for operational", mtls(l.enrolment("operational", good), idevid), 401, "mtls"},
		{"IDevID for an IDevID", mtls(l.enrolment("idevid", good), idevid), 401, "mtls"},
		{"empty common name", basic(l.enrolment("ldevid", newCSR(t, newKey(t), ""))), 400, "basic"},
		{"bad signature", basic(l.enrolment("ldevid", broken)), 400, "basic"},
		{"no CSR", basic(l.enrolment("ldevid", []byte("x"))), 400, "basic"},
		{"unknown label", basic(to(l.enrolment("", good), "/nonsense/simpleenroll")), 404, ""},
		{"no label", basic(to(l.enrolment("", good), "/simpleenroll")), 404, ""},
		{"server-side key", basic(to(l.enrolment("", good), "/ldevid/serverkeygen")), 404, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := l.do(test.r)
			e := l.lastEvent()
			if r.status != test.status || e.Status != test.status || e.Auth != test.auth || e.Reason == "" || e.Serial != "" {
				t.Errorf("%d %s, logged %+v", r.status, r.body, e)
			}
			if (test.status == 401) != (r.header.Get("Www-Authenticate") != "") {
				t.Errorf("header %v", r.header)
			}
		})
	}
	log, err := os.ReadFile(l.Log)
	if err != nil || strings.Contains(string(log), l.Password) || strings.Contains(string(log), l.Secret) {
		t.Errorf("there is a secret in the log: %v", err)
	}
}

func TestReenrol(t *testing.T) {
	t.Parallel()
	l := startLab(t)
	old, other := l.identity("ldevid", "device-1"), l.identity("operational", "device-1")
	renewal := func(name string, chain ...tls.Certificate) request {
		r := l.enrolment("ldevid", newCSR(t, newKey(t), name))
		r.url = l.ESTURL + "/ldevid/simplereenroll"
		r.chain = chain
		return r
	}
	for _, test := range []struct {
		name   string
		r      request
		status int
	}{
		{"good", renewal("device-1", old), 200},
		{"other name", renewal("device-2", old), 403},
		{"other CA", renewal("device-1", other), 401},
		{"password", renewal("device-1").withBasic(l.Username, l.Password), 401},
	} {
		if r := l.do(test.r); r.status != test.status {
			t.Errorf("%s: %d %s", test.name, r.status, r.body)
		}
	}
}

// TestSubjectAltName sees the name extension of a request in the certificate, and in its renewal.
func TestSubjectAltName(t *testing.T) {
	t.Parallel()
	l := startLab(t)
	key := newKey(t)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "device-1"}, DNSNames: []string{"device-1.example.net"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	r := l.enrolment("ldevid", csr)
	chain := l.do(r.withBasic(l.Username, l.Password)).certificates(t)
	r.url, r.chain = l.ESTURL+"/ldevid/simplereenroll", []tls.Certificate{pairOf(key, chain...)}
	for _, leaf := range []*x509.Certificate{chain[0], l.do(r).certificates(t)[0]} {
		if !slices.Equal(leaf.DNSNames, []string{"device-1.example.net"}) {
			t.Errorf("names %v", leaf.DNSNames)
		}
	}
}

func TestCACerts(t *testing.T) {
	t.Parallel()
	l := startLab(t)
	for label, file := range map[string]string{"idevid": l.IDevIDCA, "ldevid": l.LDevIDCA, "operational": l.OperationalCA} {
		want, err := readCertificates(file)
		if err != nil {
			t.Fatal(err)
		}
		got := l.do(request{method: "GET", url: l.ESTURL + "/" + label + "/cacerts"}).certificates(t)
		if len(got) != 2 || !got[0].Equal(want[0]) || !got[1].Equal(want[1]) {
			t.Errorf("%s: cacerts are not issuing CA and root", label)
		}
		if r := l.do(request{method: "GET", url: l.ESTURL + "/" + label + "/csrattrs"}); r.status != 204 || len(r.body) != 0 {
			t.Errorf("%s: csrattrs: %d %q", label, r.status, r.body)
		}
	}
	if r := l.do(request{method: "GET", url: l.ESTURL + "/cacerts"}); r.status != 404 {
		t.Errorf("cacerts without label: %d", r.status)
	}
}

// TestBadServers shows that a client that verifies sends nothing, and that the log tells.
func TestBadServers(t *testing.T) {
	t.Parallel()
	l := startLab(t)
	for listener, url := range map[string]string{
		"expired": l.ESTURLExpired, "wrong-host": l.ESTURLWrongHost, "untrusted": l.ESTURLUntrusted,
	} {
		answer, err := l.client().Get(url + "/ldevid/cacerts")
		if err == nil {
			answer.Body.Close()
			t.Errorf("%s: trusted", listener)
		}
		careless := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
		if answer, err = careless.Get(url + "/ldevid/cacerts"); err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		careless.CloseIdleConnections()
		served := slices.DeleteFunc(l.events(), func(e Event) bool { return e.Event != "est" || e.Listener != listener })
		if len(served) != 1 {
			t.Errorf("%s: %d requests arrived, not the careless one only", listener, len(served))
		}
	}
}

// TestRestart checks that clients of a lab can still be clients of it after a restart.
func TestRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var first Description
	t.Run("first", func(t *testing.T) { first = startLabIn(t, dir).Description })
	second := startLabIn(t, dir)
	if second.Accounts != first.Accounts {
		t.Error("other credentials")
	}
	second.identity("ldevid", "device-1")
	for name, mode := range map[string]os.FileMode{"lab.json": 0o600, "accounts.json": 0o600, "lab.log": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if err := Create(dir); err == nil {
		t.Error("ca create overwrote the CAs")
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) != 0 {
		t.Errorf("temporary files left: %v, %v", left, err)
	}
}
