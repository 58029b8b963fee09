package edgecfg

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// device is a root directory as tpm2cloud-ldevid leaves it.
type device struct {
	t        *testing.T
	root     string
	settings map[string]string // dotted key to TOML value
	clock    clock.Clock
	system   time.Time

	ldevidCA, serverCA *pki.CA
}

const (
	pin      = "0123456789abcdef0123456789abcdef"
	password = "correct horse"
)

func newDevice(t *testing.T, method string) *device {
	t.Helper()
	root, err := os.MkdirTemp("", "edge") // short: keyd's socket is in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	d := &device{
		t: t, root: root, ldevidCA: pki.NewCA(t, "LDevID CA", nil), serverCA: pki.NewCA(t, "Server CA", nil),
		clock: clockAt(time.Now(), true), system: time.Now(),
		settings: map[string]string{
			"edge.method":   `"` + method + `"`,
			"edge.id_scope": `"0ne00AAAAAA"`,
		},
	}
	if method != "dps" {
		d.settings["edge.est.server"] = `"est.invalid:8443"`
		d.settings["edge.est.server_ca"] = `"/etc/tpm2cloud/server-ca.pem"`
	}
	if method == "est-ba" {
		d.settings["edge.est.username"], d.settings["edge.est.password"] = `"device"`, `"est-password"`
	}
	d.file("etc/tpm2cloud/server-ca.pem", string(pki.PEM(d.serverCA.Cert)), 0o644)
	d.file("etc/tpm2cloud/credentials/est-password", password+"\n", 0o600)
	d.file("usr/lib/pkcs11/libtpm2_pkcs11.so", "", 0o644)
	d.file("var/lib/tpm2cloud/pins/user-pin", pin, 0o600)
	d.file("etc/group", "root:x:0:\ntss:x:110:tpm2cloud\ntpm2cloud-token:x:991:tpm2cloud\n", 0o644)
	d.enrol("board-1")
	return d
}

// enrol gives the device another LDevID.
func (d *device) enrol(name string, changes ...pki.Change) {
	d.t.Helper()
	leaf := d.issue(name, changes...)
	d.file("var/lib/tpm2cloud/ldevid/certificate.pem", string(pki.PEM(leaf, d.ldevidCA.Cert)), 0o644)
}

// issue makes a certificate as the owner's CA does.
func (d *device) issue(name string, changes ...pki.Change) *x509.Certificate {
	d.t.Helper()
	return d.ldevidCA.Issue(d.t, pki.NewKey(d.t).Public(), pkix.Name{CommonName: name}, changes...)
}

func (d *device) path(name string) string { return filepath.Join(d.root, name) }

func (d *device) file(name, content string, mode fs.FileMode) {
	d.t.Helper()
	if err := os.MkdirAll(filepath.Dir(d.path(name)), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.path(name), []byte(content), mode); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) read(name string) string {
	d.t.Helper()
	data, err := os.ReadFile(d.path(name))
	if err != nil {
		d.t.Fatal(err)
	}
	return string(data)
}

func (d *device) has(name string) bool {
	_, err := os.Lstat(d.path(name))
	return err == nil
}

// program reads the configuration as a run does.
func (d *device) program() *Program {
	d.t.Helper()
	var text strings.Builder
	for key, value := range d.settings {
		fmt.Fprintf(&text, "%s = %s\n", key, value)
	}
	d.file("etc/tpm2cloud/tpm2cloud.toml", text.String(), 0o644)
	cfg, err := config.Load(d.path("etc/tpm2cloud"), d.root)
	if err != nil {
		d.t.Fatal(err)
	}
	p, err := New(cfg, Options{
		Clock:      func(...time.Time) clock.Clock { return d.clock },
		SystemTime: func() time.Time { return d.system },
	})
	if err != nil {
		d.t.Fatal(err)
	}
	p.keydPatience, p.keydWait = 200*time.Millisecond, 10*time.Millisecond
	return p
}

// run is one run of the program, without its patience: the first failed try
// ends it.
func (d *device) run() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var failed error
	r := step.Runner{Steps: d.program().Steps(), Budget: time.Minute, Notify: func(e step.Event) {
		if e.Err != nil {
			failed = e.Err
			cancel()
		}
	}}
	if err := r.Run(ctx); failed == nil {
		return err
	}
	return failed
}

// row is the observation of one step.
func (d *device) row(name string) step.Row {
	d.t.Helper()
	for _, row := range step.Observe(context.Background(), d.program().Steps()) {
		if row.Step == name {
			return row
		}
	}
	d.t.Fatalf("no step %q", name)
	return step.Row{}
}

func (d *device) mustRun() {
	d.t.Helper()
	if err := d.run(); err != nil {
		d.t.Fatalf("run: %v (%s)", err, step.HintOf(err))
	}
}

// mustFail runs, and wants an error of a class with these words and no secret.
func (d *device) mustFail(class step.Class, words ...string) {
	d.t.Helper()
	err := d.run()
	if err == nil {
		d.t.Fatal("the run ended well")
	}
	if got := step.ClassOf(err); got != class {
		d.t.Errorf("class %d, want %d: %v", got, class, err)
	}
	text := err.Error() + "\n" + step.HintOf(err)
	for _, w := range words {
		if !strings.Contains(text, w) {
			d.t.Errorf("%q is not in the error: %s", w, text)
		}
	}
	for _, secret := range []string{pin, password} {
		if strings.Contains(text, secret) {
			d.t.Errorf("the error has a secret in it: %s", text)
		}
	}
}

// install links the agent's tool to the root, with its user.
func (d *device) install(tool string) {
	d.t.Helper()
	self, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.MkdirAll(d.path("usr/bin"), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Symlink(self, d.path("usr/bin/"+tool)); err != nil {
		d.t.Fatal(err)
	}
	d.file("stand-in/calls", "", 0o600)
	d.file("etc/group", d.read("etc/group")+"aziotcs:x:123:\n", 0o644)
}

// calls are the calls of the tool since the last time.
func (d *device) calls() []string {
	d.t.Helper()
	lines := strings.FieldsFunc(d.read("stand-in/calls"), func(r rune) bool { return r == '\n' })
	d.file("stand-in/calls", "", 0o600)
	return lines
}

// snapshot is all that a second run must not change, with times and inodes.
func (d *device) snapshot() string {
	d.t.Helper()
	var b bytes.Buffer
	err := filepath.WalkDir(d.root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		// The test itself writes this one.
		if strings.HasSuffix(path, "etc/tpm2cloud/tpm2cloud.toml") {
			return nil
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintln(&b, path, info.Mode(), st.Uid, st.Gid, info.ModTime(), st.Ino)
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return b.String()
}

// estServer answers /cacerts; the device is configured for it.
type estServer struct {
	*httptest.Server
	requests atomic.Int64
	status   atomic.Int64
}

func (d *device) serveEST(setup ...func(*tls.Config)) *estServer {
	d.t.Helper()
	cert := d.serverCA.Server(d.t, func(c *x509.Certificate) { c.IPAddresses = nil }) // an address is not its name
	content, err := pkcs7.DegenerateCertificate(d.ldevidCA.Cert.Raw)
	if err != nil {
		d.t.Fatal(err)
	}
	s := &estServer{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		if code := s.status.Load(); code != 0 {
			w.WriteHeader(int(code))
			return
		}
		if r.URL.Path != "/.well-known/est/cacerts" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/pkcs7-mime")
		io.WriteString(w, base64.StdEncoding.EncodeToString(content))
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	for _, f := range setup {
		f(s.TLS)
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	d.t.Cleanup(s.Close)
	_, port, _ := strings.Cut(s.Listener.Addr().String(), ":")
	d.settings["edge.est.server"] = `"localhost:` + port + `"`
	return s
}

func always(status int) func(string) int { return func(string) int { return status } }

func clockAt(t time.Time, verified bool) clock.Clock {
	return clock.Clock{Time: t, Verified: verified, Why: "no time server answered"}
}
