//go:build boot

package boottest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// operated is a board with an agent that has registered, and a system that
// trusts the cloud.
func operated(t testing.TB, serial string) (*Machine, *Lab) {
	t.Helper()
	m, lab := newDevice(t, "amd64", serial)
	m.Put(agent())
	m.Put(Files{"/etc/ssl/certs/lab.pem": {Data: read(t, lab.About["server_ca"]), Mode: 0o644}})
	m.Boot()
	m.Expect(allActive)
	m.Expect(map[string]string{consumer: "active", "aziot-keyd.service": "active"})
	// As identityd keeps what the cloud has told it.
	m.Put(Files{"/var/lib/aziot/identityd/device_info": {Mode: 0o600,
		Data: fmt.Sprintf("hub_name = \"hub.example\"\ndevice_id = %q\n", strings.ToLower(serial))}})
	return m, lab
}

// checked is what tpm2cloud check says.
func (m *Machine) checked() (verdicts map[string]checkResult, code int) {
	m.t.Helper()
	out, code := m.Try("sh", "-c", "tpm2cloud check --json 2>/dev/null")
	var all struct{ Checks []checkResult }
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		m.t.Fatalf("tpm2cloud check: %v\n%s", err, out)
	}
	verdicts = map[string]checkResult{}
	for _, r := range all.Checks {
		verdicts[r.ID] = r
	}
	return verdicts, code
}

type checkResult struct{ ID, Verdict, Detail, Hint string }

// What is broken by hand on a device in use, what tpm2cloud says of it, and that
// its hint is right.
func TestNspawnCheck(t *testing.T) {
	t.Parallel()
	note := scenario(t, "tpm2cloud status and check: on a healthy device, and on broken ones")
	m, _ := operated(t, "BENCH-0030")
	const (
		state  = "/var/lib/tpm2cloud"
		dropIn = "/etc/systemd/system/aziot-keyd.service.d/90-broken.conf"
		broken = "/etc/tpm2cloud/tpm2cloud.toml.d/90-broken.toml"
	)
	inside := func(path string) string { return filepath.Join(m.Root, path) }
	sh := func(script string) func() { return func() { m.Run("sh", "-ec", script) } }

	var table strings.Builder
	fmt.Fprintf(&table, "%-44s  %5s  %6s  %s\n", "broken", "check", "status", "said")
	row := func(what string, check, status int, said string) {
		fmt.Fprintf(&table, "%-44s  %5d  %6d  %s\n", what, check, status, said)
	}
	healthy := func() {
		t.Helper()
		verdicts, code := m.checked()
		for _, r := range verdicts {
			// A container has no clock of its own, and a TPM in software is none for production.
			if r.Verdict == "failed" || r.Verdict == "warning" && r.ID != "clock" && r.ID != "ek" {
				t.Errorf("on a healthy device %s: %s: %s", r.ID, r.Verdict, r.Detail)
			}
		}
		if code != 0 {
			t.Errorf("on a healthy device check ends with %d", code)
		}
		for _, id := range []string{"keyd-sign", "ldevid-sign", "agent-key", "dps", "units", "agent-units", "tss"} {
			if verdicts[id].Verdict != "ok" {
				t.Errorf("%s is not checked: %+v", id, verdicts[id])
			}
		}
		if _, code := m.Try("tpm2cloud", "status"); code != 0 {
			t.Errorf("on a healthy device status ends with %d", code)
		}
	}
	healthy()
	row("nothing", 0, 0, "")
	keep(t, "healthy.txt", m.Run("tpm2cloud", "check")+m.Run("tpm2cloud", "status"))

	// Whoever is not root sees what the units wrote, and no secret.
	out := m.Run("runuser", "-u", "nobody", "--", "tpm2cloud", "status")
	for _, want := range []string{"tpm2cloud-edgecfg: ended well at", "bench-0030", "locked (since "} {
		if !strings.Contains(out, want) {
			t.Errorf("the status without root does not tell %q:\n%s", want, out)
		}
	}
	if out, code := m.Try("runuser", "-u", "nobody", "--", "tpm2cloud", "check"); code != 0 || !strings.Contains(out, "keyd-sign           skipped") {
		t.Errorf("check without root, exit code %d:\n%s", code, out)
	}
	if out, code := m.Try("runuser", "-u", "nobody", "--", "tpm2cloud", "report", "--output", "-"); code != 77 {
		t.Errorf("a report without root, exit code %d:\n%s", code, out)
	}
	if out, code := m.Try("runuser", "-u", "nobody", "--", "tpm2cloud", "reset", "--ldevid", "--yes"); code != 77 {
		t.Errorf("a reset without root, exit code %d:\n%s", code, out)
	}

	for _, b := range []struct {
		what            string
		damage          func()
		id              string // of the check that is about it
		verdict, detail string
		check, status   int // exit codes
		repair          func()
	}{
		{"keyd's unit lost its groups",
			func() {
				m.Put(Files{dropIn: {Data: "[Service]\nSupplementaryGroups=\n", Mode: 0o644}})
				sh("systemctl daemon-reload")()
			},
			"keyd-sign", "failed", "user aziotks cannot sign", 69, 0, sh("rm " + dropIn + "; systemctl daemon-reload")},
		{"keyd's unit lost its environment",
			func() {
				m.Put(Files{dropIn: {Data: "[Service]\nEnvironment=\n", Mode: 0o644}})
				sh("systemctl daemon-reload")()
			},
			"keyd-sign", "failed", "no TPM2_PKCS11_STORE", 69, 0, sh("rm " + dropIn + "; systemctl daemon-reload")},
		{"keyd's drop-in is not read yet",
			func() { m.Put(Files{dropIn: {Data: "[Service]\nNice=1\n", Mode: 0o644}}) },
			"agent-units", "warning", "systemd has not read it", 0, 0, sh("rm " + dropIn + "; systemctl daemon-reload")},
		{"the token's store is closed to the group", sh("chmod 0700 " + state + "/pkcs11"),
			"keyd-sign", "failed", "user aziotks cannot sign", 69, 0, sh("chmod 2770 " + state + "/pkcs11")},
		{"keyd does not run", sh("systemctl stop aziot-keyd"),
			"agent-key", "failed", "keyd.sock", 69, 0, sh("systemctl start aziot-keyd")},
		{"the LDevID key is evicted", func() { m.TPM.Tool(t, "tpm2_evictcontrol", "-C", "o", "-c", ldevidHandle) },
			"ldevid-key", "failed", "is partial: the key is in the token but not at its handle", 75, 75, sh("systemctl restart tpm2cloud-ldevid tpm2cloud-edgecfg")},
		{"the token's PIN is another", sh("cp -p " + state + "/pins/user-pin /root/pin; printf 00112233445566778899aabbccddeeff >" + state + "/pins/user-pin"),
			"token", "failed", "the PIN on disk does not open it", 65, 65, sh("cp -p /root/pin " + state + "/pins/user-pin")},
		{"the LDevID certificate is another's", sh("cp -p " + state + "/ldevid/certificate.pem /root/; cat " + state + "/idevid/certificate.pem >" + state + "/ldevid/certificate.pem"),
			"ldevid-certificate", "failed", "certificate.pem is partial", 75, 75, sh("cp -p /root/certificate.pem " + state + "/ldevid/certificate.pem")},
		{"a PIN is open to all", sh("chmod 0644 " + state + "/pins/so-pin"),
			"secret-modes", "failed", "so-pin has mode 0644", 65, 0, sh("chmod 0600 " + state + "/pins/so-pin")},
		{"somebody may open the TPM", sh("usermod -aG tss nobody"),
			"tss", "warning", "nobody", 0, 0, sh("gpasswd -d nobody tss")},
		{"the vendor is trusted no more", sh("mv /etc/tpm2cloud/ek-roots/vendor.pem /root/"),
			"ek", "failed", "not proven genuine", 65, 65, sh("mv /root/vendor.pem /etc/tpm2cloud/ek-roots/")},
		{"the agent's configuration is edited", sh("echo '# by hand' >>/etc/aziot/config.toml"),
			"agent-files", "failed", "edited by somebody", 75, 75, sh("systemctl restart tpm2cloud-edgecfg; rm /etc/aziot/config.toml.*.bak")},
		{"the EST server's CA is another's", func() {
			m.Put(Files{broken: {Data: "[edge.est]\nserver_ca = \"/etc/tpm2cloud/idevid-ca.pem\"\n", Mode: 0o644}})
		}, "est-operational", "failed", "authority", 75, 75, sh("rm " + broken)},
		{"the cloud is not trusted", sh("mv /etc/ssl/certs/lab.pem /root/"),
			"dps", "failed", "is not trusted", 65, 0, sh("mv /root/lab.pem /etc/ssl/certs/")},
		{"the device is registered under another name", sh("sed -i.bak s/bench-0030/bench-0029/ /var/lib/aziot/identityd/device_info"),
			"agent-registered", "failed", "bench-0029", 65, 0, sh("mv /var/lib/aziot/identityd/device_info.bak /var/lib/aziot/identityd/device_info")},
		{"the target is disabled", sh("systemctl disable tpm2cloud.target"),
			"units-enabled", "failed", "tpm2cloud.target is disabled", 69, 0, sh("systemctl enable tpm2cloud.target")},
		{"a unit was stopped", sh("systemctl stop tpm2cloud-edgecfg"),
			"units", "failed", "tpm2cloud-edgecfg.service is inactive", 75, 0, sh("systemctl start tpm2cloud.target")},
		{"the configuration has an unknown key", func() { m.Put(Files{broken: {Data: "[run]\nbudgett = \"1s\"\n", Mode: 0o644}}) },
			"config", "failed", "90-broken.toml: line 2", 78, 78, sh("rm " + broken)},
		{"the software TPM does not run", func() { m.TPM.Tool(t, "tpm2_shutdown", "-c"); m.TPM.Cut() },
			"tpm", "failed", "connection refused", 75, 75, m.powerTPM},
		// Its power was away: the platform hierarchy is open.
		{"the TPM was reset", func() {},
			"platform", "failed", "is missing: open", 75, 75, sh("systemctl restart tpm2cloud-idevid; systemctl start tpm2cloud.target; systemctl restart aziot-keyd")},
	} {
		b.damage()
		verdicts, check := m.checked()
		status, statusCode := m.Try("tpm2cloud", "status")
		got := verdicts[b.id]
		if got.Verdict != b.verdict || !strings.Contains(got.Detail, b.detail) || check != b.check || statusCode != b.status {
			t.Errorf("%s: %+v, exit code %d; want %s, %q, %d; status ends with %d, want %d", b.what, got, check, b.verdict, b.detail, b.check, statusCode, b.status)
		}
		if got.Hint == "" {
			t.Errorf("%s: %s has no hint", b.what, b.id)
		}
		if strings.Contains(status, "panic") {
			t.Errorf("%s: %s", b.what, status)
		}
		row(b.what, check, statusCode, fmt.Sprintf("%s: %s: %s | hint: %s", got.ID, got.Verdict, got.Detail, got.Hint))
		out, _ := m.Try("tpm2cloud", "check")
		keep(t, strings.ReplaceAll(b.what, " ", "-")+".txt", out+"\n"+status)
		b.repair()
		if what := b.what; b.id != "tpm" { // the next one is its repair
			if verdicts, code := m.checked(); code != 0 || verdicts[b.id].Verdict == b.verdict && verdicts[b.id].Detail == got.Detail {
				out, _ := m.Try("tpm2cloud", "check")
				t.Errorf("%s, put right: check ends with %d, %+v\n%s", what, code, verdicts[b.id], out)
			}
		}
	}
	healthy()
	keep(t, "table.txt", table.String())
	fmt.Printf("\n%s\n", table.String())

	var took []time.Duration
	for range 9 {
		begin := time.Now()
		m.Run("tpm2cloud", "status", "--live")
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	note("status --live takes %d ms, with the start of the process from outside", took[len(took)/2].Milliseconds())

	m.Run("sh", "-ec", "tpm2cloud report --output /root/report.tar.gz; mkdir /root/report; tar -xzf /root/report.tar.gz -C /root/report --strip-components=1")
	for name, want := range map[string]string{"journal.txt": "ready: bench-0030", "units.txt": "tpm2cloud-idevid.service", "packages.txt": "tpm2cloud-cli ", "check.json": `"id": "keyd-sign"`} {
		if text := read(t, inside("root/report/"+name)); !strings.Contains(text, want) {
			t.Errorf("%s in the report does not tell %q:\n%.2000s", name, want, text)
		}
	}
	for _, secret := range []string{state + "/pins/user-pin", state + "/pins/so-pin", "/etc/tpm2cloud/credentials/est-password"} {
		if out, code := m.Try("grep", "-rlF", strings.TrimSpace(read(t, inside(secret))), "/root/report"); code != 1 {
			t.Errorf("the secret of %s is in the report: %s", secret, out)
		}
	}
	m.PowerOff()
}

// The owner's identity goes while the device runs, and the next start gives it
// the next; the manufacturer's goes at a boot.
func TestNspawnReset(t *testing.T) {
	t.Parallel()
	scenario(t, "tpm2cloud reset: the owner's identity, a reset that was cut, all identities")
	m, lab := operated(t, "BENCH-0031")
	idevidKey, ldevidKey := m.TPM.Key(t, idevidHandle), m.TPM.Key(t, ldevidHandle)
	idle := map[string]string{target: "inactive", idevid: "inactive", ldevid: "inactive", edgecfg: "inactive", "aziot-keyd.service": "inactive", "tpm2cloud-retry.timer": "inactive"}

	out := m.Run("tpm2cloud", "reset", "--ldevid", "--yes")
	for _, want := range []string{"A reset does not revoke", "LDevID bench-0031: serial ", "kept: the IDevID"} {
		if !strings.Contains(out, want) {
			t.Errorf("the reset does not tell %q:\n%s", want, out)
		}
	}
	m.Expect(idle)
	same(t, "handles after the reset", []string{ekHandle, idevidHandle}, m.TPM.Handles(t))
	for _, name := range []string{"var/lib/tpm2cloud/ldevid", "var/lib/tpm2cloud/pins", "var/lib/tpm2cloud/pkcs11/tpm2_pkcs11.sqlite3", "etc/aziot/config.toml",
		"etc/aziot/keyd/config.d/00-super.toml", "var/lib/aziot/identityd/device_info", "etc/systemd/system/aziot-keyd.service.d/50-tpm2cloud.conf"} {
		if _, err := os.Lstat(filepath.Join(m.Root, name)); err == nil {
			t.Errorf("the reset left /%s", name)
		}
	}
	if show := m.Show("aziot-keyd.service"); strings.Contains(show["Environment"], "TPM2_PKCS11_STORE") {
		t.Error("systemd still has the drop-in of aziot-keyd")
	}
	m.Run("systemctl", "start", target)
	m.Expect(allActive)
	if m.TPM.Key(t, idevidHandle) != idevidKey || m.TPM.Key(t, ldevidHandle) == ldevidKey {
		t.Error("the next owner has the same LDevID, or another IDevID")
	}

	// A reset that was cut right after it began.
	m.PowerOff()
	m.Put(Files{"/var/lib/tpm2cloud/reset.json": {Mode: 0o644, Data: `{"version":1,"scope":"ldevid","asked":"2026-01-02T03:04:05Z","tpm_resets":1,"at_boot":false,"revoke":[]}`}})
	m.Boot()
	m.Expect(map[string]string{target: "active", idevid: "failed 65", ldevid: "inactive", edgecfg: "inactive"})
	says(t, m, idevid, cannotGoOn, "a reset was interrupted", "tpm2cloud reset --yes")
	m.Run("tpm2cloud", "reset", "--yes")
	m.Expect(map[string]string{ldevid: "inactive", edgecfg: "inactive"})
	m.Run("systemctl", "start", target)
	m.Expect(allActive)

	out = m.Run("tpm2cloud", "reset", "--all", "--yes")
	if !strings.Contains(out, "At the next boot") || !strings.Contains(out, "IDevID ") {
		t.Errorf("the reset does not tell what waits for the next boot:\n%s", out)
	}
	m.Try("systemctl", "start", target)
	m.Expect(map[string]string{idevid: "failed 65", ldevid: "inactive"})
	says(t, m, idevid, cannotGoOn, "was not reset since", "boot again")
	if m.TPM.Key(t, idevidHandle) != idevidKey {
		t.Error("the IDevID is gone before its certificate")
	}
	m.PowerOff()
	m.Boot()
	m.Expect(allActive)
	if _, err := os.Lstat(filepath.Join(m.Root, "var/lib/tpm2cloud/reset.json")); err == nil {
		t.Error("the note of the reset is left")
	}
	m.PowerOff()
	if m.TPM.Key(t, idevidHandle) == idevidKey {
		t.Error("the IDevID is the same")
	}
	Verify(t, m.TPM, m.Root, lab)
}
