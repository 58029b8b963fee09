package edgecfg

import (
	"crypto/tls"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// applied is a device whose agent runs with its configuration.
func applied(t *testing.T, method string) (*device, *estServer) {
	t.Helper()
	d := newDevice(t, method)
	var server *estServer
	if method != "dps" {
		server = d.serveEST()
	}
	d.install("iotedge")
	serveKeyd(t, d.root, always(http.StatusOK))
	d.mustRun()
	if got, want := d.calls(), []string{"iotedge config apply"}; !slices.Equal(got, want) {
		t.Fatalf("calls %q, want %q", got, want)
	}
	tick()
	return d, server
}

// provisioned has identityd keep a device of a hub.
func (d *device) provisioned(id string) {
	d.t.Helper()
	d.file("var/lib/aziot/identityd/device_info", "hub_name = \"hub\"\ndevice_id = \""+id+"\"\n", 0o600)
	tick()
}

// tick lets the kernel's clock of files go on, which stands still for some milliseconds.
func tick() { time.Sleep(20 * time.Millisecond) }

func (d *device) wantCalls(want ...string) {
	d.t.Helper()
	if got := d.calls(); !slices.Equal(got, want) {
		d.t.Errorf("calls %q, want %q", got, want)
	}
}

var methodNames = []string{"dps", "est-ba", "est-mtls"}

func TestSecondRunDoesNothing(t *testing.T) {
	for _, method := range methodNames {
		t.Run(method, func(t *testing.T) {
			d, server := applied(t, method)
			d.provisioned("board-1")
			before := d.snapshot()
			if server != nil {
				server.requests.Store(0)
			}
			d.mustRun()
			if after := d.snapshot(); after != before {
				t.Errorf("changed:\n%s\nwas:\n%s", after, before)
			}
			if server != nil && server.requests.Load() != 0 {
				t.Errorf("%d requests", server.requests.Load())
			}
			d.wantCalls()
			for _, row := range step.Observe(t.Context(), d.program().Steps()) {
				if row.State != step.Present || row.Error != "" {
					t.Errorf("%s is %s: %s %s", row.Step, row.State, row.Detail, row.Error)
				}
			}
		})
	}
}

func TestAgentComesLater(t *testing.T) {
	d := newDevice(t, "est-mtls")
	server := d.serveEST()
	d.mustRun()
	row := d.row("apply")
	if row.State != step.Partial || !strings.Contains(row.Waiting, "not installed") {
		t.Errorf("apply is %s, waiting %q", row.State, row.Waiting)
	}
	before := d.snapshot()
	server.requests.Store(0)
	d.mustRun()
	if d.snapshot() != before || server.requests.Load() != 0 {
		t.Error("the run that waits for the agent did something")
	}

	d.install("iotedge")
	serveKeyd(t, d.root, always(http.StatusOK))
	d.mustRun()
	d.wantCalls("iotedge config apply")
	if row := d.row("apply"); row.State != step.Present || row.Waiting != "" {
		t.Errorf("apply is %s: %s", row.State, row.Detail)
	}
}

func TestWithoutEdgeTheIdentityServiceApplies(t *testing.T) {
	d := newDevice(t, "dps")
	d.install("aziotctl")
	serveKeyd(t, d.root, always(http.StatusOK))
	d.mustRun()
	d.wantCalls("aziotctl config apply")
	d.mustRun()
	d.wantCalls()
	// The agent that comes later has a daemon of its own to configure.
	if err := os.Rename(d.path("usr/bin/aziotctl"), d.path("usr/bin/iotedge")); err != nil {
		t.Fatal(err)
	}
	d.mustRun()
	d.wantCalls("iotedge config apply")
}

func TestApplyNever(t *testing.T) {
	d := newDevice(t, "dps")
	d.install("iotedge")
	d.settings["edge.apply"] = `"never"`
	d.mustRun()
	d.wantCalls()
	if row := d.row("apply"); row.State != step.Present {
		t.Errorf("apply is %s", row.State)
	}
}

func TestReprovision(t *testing.T) {
	both := []string{"iotedge config apply", "iotedge system reprovision"}
	for _, test := range []struct {
		name   string
		method string
		change func(*device)
		want   []string
	}{
		{"scope", "est-mtls", func(d *device) { d.settings["edge.id_scope"] = `"0ne00BBBBBB"` }, both},
		{"scope, dps", "dps", func(d *device) { d.settings["edge.id_scope"] = `"0ne00BBBBBB"` }, both},
		{"endpoint", "est-ba", func(d *device) { d.settings["edge.global_endpoint"] = `"https://dps.example.com"` }, both},
		{"device id", "est-mtls", func(d *device) { d.settings["edge.device_id"] = `"board-2"` }, both},
		{"LDevID of another board", "dps", func(d *device) { d.enrol("board-2") }, both},
		{"new LDevID of this board", "dps", func(d *device) { d.enrol("board-1") }, both},
		{"new LDevID of this board", "est-mtls", func(d *device) { d.enrol("board-1") }, both[:1]},
		{"hostname", "dps", func(d *device) { d.settings["edge.hostname"] = `"board"` }, both[:1]},
		{"operational key", "est-mtls", func(d *device) { d.settings["edge.operational_key"] = `"file"` }, both[:1]},
		{"password", "est-ba", func(d *device) { d.file("etc/tpm2cloud/credentials/est-password", "other", 0o600) }, both[:1]},
	} {
		t.Run(test.method+" "+test.name, func(t *testing.T) {
			d, _ := applied(t, test.method)
			d.provisioned("board-1")
			test.change(d)
			d.mustRun()
			d.wantCalls(test.want...)
			d.mustRun()
			d.wantCalls()
		})
	}
}

func TestFirstApplyOfACloneReprovisions(t *testing.T) {
	d := newDevice(t, "dps")
	d.install("iotedge")
	serveKeyd(t, d.root, always(http.StatusOK))
	d.provisioned("golden")
	d.mustRun()
	d.wantCalls("iotedge config apply", "iotedge system reprovision")
}

func TestUnprovisionedIsNotReprovisioned(t *testing.T) {
	d := newDevice(t, "dps")
	d.install("iotedge")
	serveKeyd(t, d.root, always(http.StatusOK))
	d.file("var/lib/aziot/identityd/device_info", "unprovisioned", 0o600)
	d.mustRun()
	d.wantCalls("iotedge config apply")
}

// A run that is cut between apply and reprovision leaves files that look
// finished.
func TestCutBeforeReprovision(t *testing.T) {
	d, _ := applied(t, "dps")
	d.provisioned("board-1")
	d.settings["edge.id_scope"] = `"0ne00BBBBBB"`
	d.file("stand-in/fail", "system reprovision: no network", 0o600)
	d.mustFail(step.Temporary, "registered anew", "no network")
	if calls := d.calls(); calls[0] != "iotedge config apply" || calls[1] != "iotedge system reprovision" || len(calls) > 2 {
		t.Errorf("calls %q", calls)
	}
	if row := d.row("apply"); row.State != step.Partial {
		t.Errorf("apply is %s", row.State)
	}
	os.Remove(d.path("stand-in/fail"))
	d.mustRun()
	d.wantCalls("iotedge system reprovision")
	d.mustRun()
	d.wantCalls()
}

// The daemons' files are there, and nobody started the daemons.
func TestCutDuringApply(t *testing.T) {
	d, _ := applied(t, "est-mtls")
	d.settings["edge.id_scope"] = `"0ne00BBBBBB"`
	d.file("stand-in/cut", "", 0o600)
	d.mustFail(step.Temporary, "killed")
	os.Remove(d.path("stand-in/cut"))
	d.calls()
	if row := d.row("apply"); row.State != step.Partial || !strings.Contains(row.Detail, "not yet seen to work") {
		t.Errorf("apply is %s: %s", row.State, row.Detail)
	}
	d.mustRun()
	d.wantCalls("iotedge config apply")
	d.mustRun()
	d.wantCalls()
}

func TestDaemonFileThatIsDamaged(t *testing.T) {
	d, _ := applied(t, "dps")
	d.file("etc/aziot/identityd/config.d/00-super.toml", "[provis", 0o600)
	d.mustRun()
	d.wantCalls("iotedge config apply")
}

func TestApplyFails(t *testing.T) {
	d := newDevice(t, "est-ba")
	d.serveEST()
	d.install("iotedge")
	d.file("stand-in/fail", "config apply: aziotks: no such user "+pin+" "+password, 0o600)
	d.mustFail(step.Temporary, "cannot apply", "aziotks: no such user *** ***", "exit status 1")
}

func TestKeyThatKeydCannotUse(t *testing.T) {
	for _, test := range []struct {
		method string
		answer func(string) int
		good   bool
	}{
		{"dps", always(500), false},
		{"dps", always(400), false},
		{"est-ba", always(400), true}, // no key yet, and keyd runs
		{"est-ba", always(500), false},
		{"est-mtls", func(id string) int { return map[string]int{"est-id": 200}[id] }, true},
		{"est-mtls", func(id string) int { return map[string]int{"est-id": 400, "device-id": 200}[id] }, false},
	} {
		d := newDevice(t, test.method)
		if test.method != "dps" {
			d.serveEST()
		}
		d.install("iotedge")
		serveKeyd(t, d.root, test.answer)
		if test.good {
			d.mustRun()
			continue
		}
		d.mustFail(step.Unavailable, "keyd", "tpm2cloud-token", "libtpm2_pkcs11.so", "/var/lib/tpm2cloud/pkcs11")
		// It stays an error although the files of the agent are as they must be.
		if row := d.row("apply"); row.State != step.Partial {
			t.Errorf("%s: apply is %s", test.method, row.State)
		}
		d.mustFail(step.Unavailable)
	}
}

func TestKeydIsNotThere(t *testing.T) {
	d := newDevice(t, "dps")
	d.install("iotedge")
	d.mustFail(step.Unavailable, "keyd.sock")
	serveKeyd(t, d.root, always(http.StatusOK))
	d.mustRun()
}

// Somebody applied something else since.
func TestForeignApply(t *testing.T) {
	d, _ := applied(t, "est-mtls")
	name := "etc/aziot/keyd/config.d/00-super.toml"
	d.file(name, strings.Replace(d.read(name), "est-id", "est-x", 1), 0o600)
	if row := d.row("apply"); row.State != step.Partial || !strings.Contains(row.Detail, "preloaded_keys.est-id of keyd") {
		t.Errorf("apply is %s: %s", row.State, row.Detail)
	}
	d.mustRun()
	d.wantCalls("iotedge config apply")
}

func TestForeignOperationalCertificate(t *testing.T) {
	d := newDevice(t, "est-mtls")
	d.serveEST()
	d.install("iotedge")
	serveKeyd(t, d.root, always(http.StatusOK))
	issue := func(file, name string) {
		d.file("var/lib/aziot/certd/certs/"+file, string(pki.PEM(d.issue(name))), 0o600)
	}
	issue("deviceid-0a.cer", "golden")
	issue("deviceid-0b.cer", "board-1")
	issue("aziotedgedca-0c.cer", "golden")
	d.mustRun()
	for name, want := range map[string]bool{"deviceid-0a.cer": false, "deviceid-0b.cer": true, "aziotedgedca-0c.cer": true} {
		if d.has("var/lib/aziot/certd/certs/"+name) != want {
			t.Errorf("%s is there: %t", name, !want)
		}
	}
}

// A server that would make identityd lose keys stops the run before anything
// is written.
func TestServerThatCannotBeUsed(t *testing.T) {
	for _, test := range []struct {
		name   string
		method string
		change func(*device, *estServer)
		class  step.Class
		words  string
	}{
		{"down", "est-mtls", func(_ *device, s *estServer) { s.Close() }, step.Temporary, "connection refused"},
		{"other CA", "est-mtls", func(d *device, _ *estServer) {
			d.file("etc/tpm2cloud/server-ca.pem", string(pki.PEM(pki.NewCA(d.t, "Other CA", nil).Cert)), 0o644)
		}, step.Refused, "server_ca"},
		{"other name", "est-ba", func(d *device, _ *estServer) {
			d.settings["edge.est.server"] = strings.Replace(d.settings["edge.est.server"], "localhost", "127.0.0.1", 1)
		}, step.Refused, "127.0.0.1"},
		{"busy", "est-ba", func(_ *device, s *estServer) { s.status.Store(503) }, step.Temporary, "503"},
		{"password", "est-ba", func(_ *device, s *estServer) { s.status.Store(401) }, step.ServerRefused, "password"},
		{"label", "est-ba", func(_ *device, s *estServer) { s.status.Store(404) }, step.ServerRefused, "label"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, server := applied(t, test.method)
			d.settings["edge.id_scope"] = `"0ne00BBBBBB"`
			test.change(d, server)
			before := d.snapshot()
			d.mustFail(test.class, test.words)
			if test.name != "other CA" && d.snapshot() != before {
				t.Error("something was changed")
			}
			if strings.Contains(d.read("etc/aziot/config.toml"), "BBBBBB") {
				t.Error("config.toml was replaced")
			}
			d.wantCalls()
		})
	}
}

func TestServerThatWantsTheClientCertificate(t *testing.T) {
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			d := newDevice(t, "est-mtls")
			d.serveEST(func(c *tls.Config) { c.ClientAuth, c.MaxVersion = tls.RequireAnyClientCert, version })
			d.mustRun()
		})
	}
	d := newDevice(t, "est-mtls")
	d.serveEST().status.Store(401)
	d.mustRun()
}

// The agent knows no other clock than the system's.
func TestClockThatIsNotSet(t *testing.T) {
	d := newDevice(t, "dps")
	d.install("iotedge")
	d.system = time.Unix(0, 0)
	d.clock = clockAt(time.Now(), false)
	d.mustFail(step.Temporary, "clock")
	if d.has("etc/aziot") {
		t.Error("something was written")
	}
	d.wantCalls()

	d = newDevice(t, "est-mtls")
	d.serveEST()
	d.enrol("board-1", pki.Dates(time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)))
	d.clock = clockAt(time.Now().Add(-48*time.Hour), false)
	d.mustFail(step.Temporary, "clock")
}

func TestDirectoryThatCertdCannotRead(t *testing.T) {
	d := newDevice(t, "dps")
	d.install("iotedge")
	if err := os.Mkdir(d.path("etc/aziot"), 0o711); err != nil {
		t.Fatal(err)
	}
	d.mustFail(step.Refused, "certd", "chmod 0755")
	d.wantCalls()
}
