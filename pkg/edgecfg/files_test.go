package edgecfg

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// attributes are mode and owner of a file.
func (d *device) attributes(name string) string {
	d.t.Helper()
	info, err := os.Lstat(d.path(name))
	if err != nil {
		d.t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%#o %d:%d", info.Mode().Perm(), st.Uid, st.Gid)
}

func TestFiles(t *testing.T) {
	old := syscall.Umask(0o077) // of a unit that means well
	defer syscall.Umask(old)

	d := newDevice(t, "est-mtls")
	d.settings["ldevid.token.store"] = `"/var/lib/my store"`
	d.serveEST()
	d.mustRun()
	root := "0:0"
	if uid := os.Getuid(); uid != 0 {
		root = fmt.Sprintf("%d:%d", uid, os.Getgid())
	}
	for name, want := range map[string]string{
		"etc/aziot":                      "0755 " + root,
		"etc/aziot/config.toml":          "0600 " + root,
		"etc/aziot/tpm2cloud":            "0755 " + root,
		"etc/aziot/tpm2cloud/ldevid.pem": "0640 " + root,
		"etc/aziot/tpm2cloud/est-ca.pem": "0640 " + root,
		"etc/systemd":                    "0755 " + root,
		"etc/systemd/system/aziot-keyd.service.d/50-tpm2cloud.conf": "0644 " + root,
	} {
		if got := d.attributes(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	config := d.read("etc/aziot/config.toml")
	for _, want := range []string{"file://" + d.root + "/etc/aziot/tpm2cloud/ldevid.pem", `pkcs11_lib_path = "` + d.root + "/usr/lib/", "pin-value=" + pin} {
		if !strings.Contains(config, want) {
			t.Errorf("config.toml has no %s", want)
		}
	}
	if got, want := d.read("etc/aziot/tpm2cloud/ldevid.pem"), d.read("var/lib/tpm2cloud/ldevid/certificate.pem"); got != want {
		t.Error("another LDevID certificate")
	}
	unit := d.read("etc/systemd/system/aziot-keyd.service.d/50-tpm2cloud.conf")
	for _, want := range []string{
		"[Unit]", "After=tpm2cloud-ldevid.service", "[Service]", "SupplementaryGroups=tss tpm2cloud-token\n", "UMask=0007\n",
		`Environment="TPM2_PKCS11_STORE=` + d.root + `/var/lib/my store"`,
		`Environment="TPM2_PKCS11_TCTI=device:` + d.root + `/dev/tpmrm0"`,
	} {
		if !strings.Contains(unit, want) {
			t.Errorf("the drop-in has no %s:\n%s", want, unit)
		}
	}
}

// The agent's package makes the group after we wrote the files.
func TestGroupsComeLater(t *testing.T) {
	root := os.Getuid() == 0 // who alone gives files away
	d := newDevice(t, "dps")
	d.file("etc/group", "root:x:0:\n", 0o644)
	d.mustRun()
	const unit = "etc/systemd/system/aziot-keyd.service.d/50-tpm2cloud.conf"
	if strings.Contains(d.read(unit), "SupplementaryGroups") {
		t.Error("the drop-in names groups that are not there")
	}
	d.file("etc/group", "root:x:0:\ntss:x:110:\naziotcs:x:123:\n", 0o644)
	if row := d.row("files"); row.State != step.Partial || strings.Contains(row.Detail, "ldevid.pem") != root || !strings.Contains(row.Detail, "50-tpm2cloud.conf") {
		t.Errorf("files is %s: %s", row.State, row.Detail)
	}
	d.mustRun()
	if got := d.attributes("etc/aziot/tpm2cloud/ldevid.pem"); root && got != "0640 0:123" {
		t.Errorf("ldevid.pem is %s", got)
	}
	if !strings.Contains(d.read(unit), "SupplementaryGroups=tss\n") {
		t.Error("the drop-in has no group tss")
	}
}

func TestEditedConfig(t *testing.T) {
	d := newDevice(t, "dps")
	d.file("etc/aziot/config.toml", "# mine\n", 0o644)
	if row := d.row("files"); row.State != step.Partial || !strings.Contains(row.Detail, "edited") {
		t.Errorf("files is %s: %s", row.State, row.Detail)
	}
	d.mustRun()
	copies, _ := filepath.Glob(d.path("etc/aziot/config.toml.*.bak"))
	if len(copies) != 1 {
		t.Fatalf("copies: %q", copies)
	}
	name := strings.TrimPrefix(copies[0], d.root+"/")
	if d.read(name) != "# mine\n" || !strings.HasPrefix(d.attributes(name), "0600") {
		t.Errorf("%s is %s: %q", name, d.attributes(name), d.read(name))
	}
	if row := d.row("files"); row.State != step.Present || len(row.Warnings) != 1 || !strings.Contains(row.Warnings[0], copies[0]) {
		t.Errorf("files is %s, warnings %q", row.State, row.Warnings)
	}

	// The same edit again makes no second copy, our own older text makes none at all.
	d.file("etc/aziot/config.toml", "# mine\n", 0o644)
	d.mustRun()
	d.settings["edge.id_scope"] = `"0ne00BBBBBB"`
	d.mustRun()
	if again, _ := filepath.Glob(d.path("etc/aziot/config.toml.*.bak")); len(again) != 1 {
		t.Errorf("copies: %q", again)
	}
	if !strings.Contains(d.read("etc/aziot/config.toml"), "0ne00BBBBBB") {
		t.Error("config.toml was not replaced")
	}
}

func TestDropInQuoting(t *testing.T) {
	for value, want := range map[string]string{
		"/var/lib/tpm2cloud/pkcs11": `"X=/var/lib/tpm2cloud/pkcs11"`,
		"/a b":                      `"X=/a b"`,
		"/100%":                     `"X=/100%%"`,
		`/q"b\`:                     `"X=/q\"b\\"`,
		"/$HOME":                    `"X=/$HOME"`,
		"/a\nb":                     `"X=/a\x0ab"`,
		"/ü":                        `"X=/ü"`,
	} {
		if got := assignment("X", value); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
}

func TestLDevIDThatCannotBeUsed(t *testing.T) {
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	const path = "var/lib/tpm2cloud/ldevid/certificate.pem"
	for _, test := range []struct {
		name   string
		change func(*device)
		class  step.Class
		words  string
	}{
		{"none", func(d *device) { os.Remove(d.path(path)) }, step.Refused, "run tpm2cloud-ldevid first"},
		{"no PIN", func(d *device) { os.Remove(d.path("var/lib/tpm2cloud/pins/user-pin")) }, step.Refused, "PIN"},
		{"empty PIN", func(d *device) { d.file("var/lib/tpm2cloud/pins/user-pin", "", 0o600) }, step.Refused, "empty"},
		{"garbage", func(d *device) { d.file(path, "garbage", 0o644) }, step.Refused, "certificate.pem"},
		{"CA first", func(d *device) { d.file(path, string(pki.PEM(d.ldevidCA.Cert)), 0o644) }, step.Refused, "must come first"},
		{"gap in the chain", func(d *device) {
			d.file(path, string(pki.PEM(d.issue("board-1"), d.serverCA.Cert)), 0o644)
		}, step.Refused, "not followed by its issuer"},
		{"expired", func(d *device) {
			d.enrol("board-1", expired)
		}, step.Refused, "ended"},
		{"expired, clock unverified", func(d *device) {
			d.enrol("board-1", expired)
			d.clock = clockAt(time.Now(), false)
		}, step.Temporary, "no time server"},
		{"name", func(d *device) { d.enrol("Board 1") }, step.Refused, "common_name"},
		{"other device id", func(d *device) { d.settings["edge.device_id"] = `"board-2"` }, step.Configuration, "byte for byte"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newDevice(t, "dps")
			test.change(d)
			d.mustFail(test.class, test.words)
			if d.has("etc/aziot") || d.has("etc/systemd") {
				t.Error("something was written")
			}
		})
	}
}

// With EST the operational certificate has the name, not the LDevID.
func TestDeviceIDOfEST(t *testing.T) {
	d := newDevice(t, "est-mtls")
	d.serveEST()
	d.enrol("Board 1")
	d.settings["edge.device_id"] = `"board-1"`
	d.mustRun()
	if row := d.row("names"); row.State != step.Present || row.Detail != "board-1" {
		t.Errorf("names is %s: %s", row.State, row.Detail)
	}
}

// Status is for whoever asks: it writes nothing and needs no network.
func TestObserveOnly(t *testing.T) {
	d := newDevice(t, "est-ba") // whose server does not exist
	d.install("iotedge")
	p := d.program()
	before := d.snapshot()
	for _, row := range step.Observe(t.Context(), p.Steps()) {
		if row.Error != "" {
			t.Errorf("%s: %s", row.Step, row.Error)
		}
	}
	if d.snapshot() != before {
		t.Error("something was changed")
	}
}

func TestPasswordThatIsMissing(t *testing.T) {
	d := newDevice(t, "est-ba")
	d.serveEST()
	os.Remove(d.path("etc/tpm2cloud/credentials/est-password"))
	d.mustFail(step.Configuration, "est-password")
}
