package aziot

import (
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// TestApply compares what apply writes with what the real one derives from the same config.toml, as
// far as a daemon can tell: the order of keys means nothing in TOML.
func TestApply(t *testing.T) {
	t.Parallel()
	const quickstart = `
[cert_issuance.aziot-edged-ca]
method = "self_signed"
expiry_days = 90
[cert_issuance.aziot-edged-ca-temp]
method = "self_signed"
expiry_days = 90
`
	const edgeCertPrincipal = `
[[principal]]
uid = UID
certs = ["aziot-edged-ca", "aziot-edged/module/*", "aziot-edged-ca-temp"]
`
	const edgeKeyPrincipal = `
[[principal]]
uid = UID
keys = ["aziot-edged-ca", "iotedge_master_encryption_id", "aziot-edged-ca-temp"]
`
	const keyd = `
[aziot_keys]
homedir_path = "/var/lib/aziot/keyd"
pkcs11_lib_path = "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so"
`
	const identityd = `
hostname = "host-1"
homedir = "/var/lib/aziot/identityd"
[provisioning]
source = "dps"
global_endpoint = "https://global.azure-devices-provisioning.net/"
scope_id = "0ne00AAAAAA"
[provisioning.attestation]
method = "x509"
identity_cert = "device-id"
identity_pk = "device-id"
`
	const modulePrincipal = `
[[principal]]
uid = UID
name = "aziot-edge"
`
	const identitydEST = identityd + `
registration_id = "mydeviceid"
[provisioning.attestation.identity_auto_renew]
rotate_key = true
threshold = "80%"
retry = "4%"
` + modulePrincipal
	const certdEST = `
[cert_issuance.est.urls]
default = "https://est.example.com:8443/.well-known/est"
[cert_issuance.device-id]
method = "est"
common_name = "mydeviceid"
[cert_issuance.device-id-temp]
method = "est"
common_name = "mydeviceid"
[[principal]]
uid = UID
certs = ["device-id-temp", "device-id"]
` + quickstart + edgeCertPrincipal

	for name, test := range map[string]struct {
		config string
		want   map[string]string
	}{
		"dps": {configDPS, map[string]string{
			"keyd": keyd + `
[preloaded_keys]
device-id = "pkcs11:token=edge;object=ldevid?pin-value=1234"
[[principal]]
uid = UID
keys = ["aziot_identityd_master_id", "device-id"]
[[principal]]
uid = UID
keys = ["aziot-edged-ca", "aziot-edged-ca-temp"]
` + edgeKeyPrincipal,
			"certd": `
homedir_path = "/var/lib/aziot/certd"
[preloaded_certs]
aziot-edged-trust-bundle = ["aziot-edged-ca"]
device-id = "file:///etc/aziot/ldevid/device-id.pem"
` + quickstart + edgeCertPrincipal,
			"identityd": identityd + modulePrincipal,
			"tpmd":      ``,
		}},
		"est-ba": {configESTBA, map[string]string{
			"keyd": keyd + `
pkcs11_base_slot = "pkcs11:token=edge?pin-value=1234"
[preloaded_keys]
[[principal]]
uid = UID
keys = ["aziot_identityd_master_id", "device-id", "device-id-temp"]
[[principal]]
uid = UID
keys = ["aziot-edged-ca", "aziot-edged-ca-temp"]
` + edgeKeyPrincipal,
			"certd": `
homedir_path = "/var/lib/aziot/certd"
[preloaded_certs]
aziot-edged-trust-bundle = ["aziot-edged-ca"]
est-server-ca-1 = "file:///etc/aziot/est/est-server-ca.pem"
[cert_issuance.est]
trusted_certs = ["est-server-ca-1"]
username = "estuser"
password = "estpwd"
` + certdEST,
			"identityd": identitydEST,
		}},
		"est-mtls": {configESTMTLS, map[string]string{
			"keyd": keyd + `
pkcs11_base_slot = "pkcs11:token=edge?pin-value=1234"
[preloaded_keys]
est-id = "pkcs11:token=edge;object=ldevid?pin-value=1234"
[[principal]]
uid = UID
keys = ["aziot_identityd_master_id", "device-id", "device-id-temp"]
[[principal]]
uid = UID
keys = ["est-id", "aziot-edged-ca", "aziot-edged-ca-temp"]
` + edgeKeyPrincipal,
			"certd": `
homedir_path = "/var/lib/aziot/certd"
[preloaded_certs]
aziot-edged-trust-bundle = ["aziot-edged-ca"]
est-id = "file:///etc/aziot/ldevid/ldevid.pem"
est-server-ca-1 = "file:///etc/aziot/est/est-server-ca.pem"
[cert_issuance.est]
trusted_certs = ["est-server-ca-1"]
identity_cert = "est-id"
identity_pk = "est-id"
[cert_issuance.est.identity_auto_renew]
rotate_key = false
threshold = "1day"
retry = "1day"
` + certdEST,
			"identityd": identitydEST,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			config := filepath.Join(root, "config.toml")
			if err := os.WriteFile(config, []byte("hostname = \"host-1\"\n"+test.config), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := Apply(config, root, "iotedge"); err != nil {
				t.Fatal(err)
			}
			for daemon, text := range test.want {
				got := readTOML(t, configPath(root, daemon))
				var want map[string]any
				text = strings.ReplaceAll(text, "UID", strconv.Itoa(os.Getuid()))
				if err := toml.Unmarshal([]byte(text), &want); err != nil {
					t.Fatal(daemon, err)
				}
				if len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
					t.Errorf("%s:\n got %v\nwant %v", daemon, got, want)
				}
			}
			edged := readTOML(t, configPath(root, "edged"))
			if edged["hostname"] != "host-1" || edged["auto_reprovisioning_mode"] != "Dynamic" {
				t.Errorf("edged: %v", edged)
			}
		})
	}
}

func readTOML(t *testing.T, path string) map[string]any {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(data), "# This file is auto-generated by `iotedge config apply`\n") {
		t.Errorf("%s has no header", path)
	}
	var m map[string]any
	if err := toml.Unmarshal(data, &m); err != nil {
		t.Fatal(path, err)
	}
	return m
}

// TestRegistrationID checks when identityd has a subject to ask for.
func TestRegistrationID(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		old, new string
		want     any
	}{
		{"", "", "mydeviceid"},
		{`registration_id = "mydeviceid"`, "", nil},
		{`common_name = "mydeviceid"`, "", nil},
		{`common_name = "mydeviceid"`, `common_name = "other"`, "mydeviceid"},
		{`common_name = "mydeviceid"`, `subject = { cn = "other", o = "me" }`, map[string]string{"CN": "mydeviceid", "O": "me"}},
	} {
		d, err := Derive(parse(t, strings.Replace(configESTBA, test.old, test.new, 1)), true)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Identityd.Provisioning.Attestation.RegistrationID; !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %v, not %v", test.new, got, test.want)
		}
	}
	if _, err := Derive(parse(t, "parent_hostname = \"p\"\n"+configDPS), true); err == nil {
		t.Error("DPS in nested mode is no error")
	}
}
