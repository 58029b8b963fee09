//go:build boot

package boottest

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

const renewal = "tpm2cloud-renew.service"

// A device through its life: the LDevID certificate is renewed while the agent
// works, and replaced when it has ended, and nothing that needs the identities is
// stopped meanwhile; then the device goes to another owner, with another CA and
// another scope. The IDevID is the same throughout.
func TestNspawnLife(t *testing.T) {
	t.Parallel()
	scenario(t, "a device's life: provisioned, renewed, its certificate ends, reset, another owner with another CA and scope")
	m, lab := newDevice(t, "amd64", "BENCH-0023")
	m.Put(agent())
	lab.Fault(t, `{"label":"ldevid","kind":"due","count":1}`)
	m.Boot()
	m.Expect(allActive)
	m.Expect(map[string]string{consumer: "active", "tpm2cloud-renew.timer": "active"})
	certificate := filepath.Join(m.Root, "var/lib/tpm2cloud/ldevid/certificate.pem")
	copied := filepath.Join(m.Root, "etc/aziot/tpm2cloud/ldevid.pem")
	initial, dependent := read(t, certificate), m.Show(consumer)["InvocationID"]

	renew := func(before string) {
		t.Helper()
		m.Run("systemctl", "start", renewal)
		if read(t, certificate) == before {
			t.Fatal("the certificate was not renewed")
		}
	}
	takenOver := func() {
		t.Helper()
		await(t, time.Minute, "the agent has the renewed certificate", func() bool {
			return read(t, copied) == read(t, certificate) && m.Show(edgecfg)["ActiveState"] == "active"
		})
		m.Expect(map[string]string{edgecfg: "active", "aziot-keyd.service": "active", consumer: "active"})
		if m.Show(consumer)["InvocationID"] != dependent {
			t.Error("who requires the identities was started anew")
		}
	}
	renew(initial)
	takenOver()
	event(t, m, renewal, ready)
	count := func(operation, auth string) (n int) {
		for _, r := range lab.Requests(t) {
			if r.Label == "ldevid" && r.Operation == operation && r.Auth == auth && r.Status == http.StatusOK {
				n++
			}
		}
		return n
	}
	if n := count("simplereenroll", "mtls"); n != 1 {
		t.Errorf("%d certificates were renewed", n)
	}
	// Not due again: the unit says so, and that is no failure.
	m.Run("systemctl", "start", renewal)
	if show := m.Show(renewal); show["Result"] != "exec-condition" {
		t.Errorf("a renewal that is not due ended as %s", show["Result"])
	}

	pki.End(t, certificate, lab.About["ldevid_ca"], filepath.Join(filepath.Dir(lab.About["ldevid_ca"]), "ldevid-ca.key"))
	// The agent cannot take it over while its EST server is away, which is made up
	// for when it is back.
	m.Put(Files{"/etc/tpm2cloud/tpm2cloud.toml.d/70-budget.toml": {Mode: 0o644, Data: "[run]\nbudget = \"1s\"\n"}})
	lab.Fault(t, `{"label":"operational","operation":"cacerts","kind":"503"}`)
	renew(read(t, certificate))
	await(t, time.Minute, "the reload has failed", func() bool { return m.Show(edgecfg)["ReloadResult"] == "exit-code" })
	m.Expect(map[string]string{edgecfg: "active", consumer: "active"})
	if read(t, copied) == read(t, certificate) {
		t.Error("the agent has a certificate that was not to be taken over")
	}
	lab.ClearFaults(t)
	m.Run("systemctl", "start", "tpm2cloud-retry.service")
	takenOver()
	// A configuration that cannot be read is no certificate that is not due.
	broken := filepath.Join(m.Root, "etc/tpm2cloud/tpm2cloud.toml.d/90-broken.toml")
	m.Put(Files{"/etc/tpm2cloud/tpm2cloud.toml.d/90-broken.toml": {Mode: 0o644, Data: "[run]\nbudgett = \"1s\"\n"}})
	if _, code := m.Try("systemctl", "start", renewal); code == 0 {
		t.Error("a renewal whose configuration is broken did not fail")
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	if n := count("simpleenroll", "mtls"); n != 2 {
		t.Errorf("%d certificates were got with the IDevID, and not 2", n)
	}
	m.PowerOff()
	first, idevidKey, idevidCertificate := Verify(t, m.TPM, m.Root, lab), m.TPM.Key(t, idevidHandle), m.TPM.NV(t, idevidIndex)

	m.Boot()
	m.Expect(allActive)
	m.Run("tpm2cloud", "reset", "--ldevid", "--yes")
	// The next owner knows the manufacturer's CA, and has one of its own.
	dir := scratch("lab")
	for _, name := range []string{"idevid-ca.pem", "idevid-ca.key"} {
		copyFile(t, filepath.Join(filepath.Dir(lab.About["idevid_ca"]), name), filepath.Join(dir, name))
	}
	next := labIn(t, dir)
	if next.About["id_scope"] == lab.About["id_scope"] {
		t.Fatal("both owners have the same scope")
	}
	m.Put(next.Configuration(t, "BENCH-0023", m.TPM.Trust))
	m.Run("systemctl", "start", target)
	m.Expect(allActive)
	m.Expect(map[string]string{"tpm2cloud-renew.timer": "active", "tpm2cloud-retry.timer": "active"})
	m.Run("systemctl", "start", consumer)
	registered(t, next, "bench-0023")
	m.PowerOff()
	second := Verify(t, m.TPM, m.Root, next)
	if m.TPM.Key(t, idevidHandle) != idevidKey || m.TPM.NV(t, idevidIndex) != idevidCertificate {
		t.Error("the IDevID is another one than at the beginning")
	}
	if second == first {
		t.Error("the next owner has the identities of the first")
	}
	if n := next.Enrolments(t, "idevid"); n != 0 {
		t.Errorf("%d more certificates were made for the manufacturer", n)
	}
}
