package aziot

import (
	"reflect"
	"strings"
	"testing"
)

const provisioning = `
[provisioning]
source = "dps"
global_endpoint = "https://global.azure-devices-provisioning.net"
id_scope = "0ne00AAAAAA"
`

const attestationDPS = `
[provisioning.attestation]
method = "x509"
identity_cert = "file:///etc/aziot/ldevid/device-id.pem"
identity_pk = "pkcs11:token=edge;object=ldevid?pin-value=1234"
`

const attestationEST = `
[provisioning.attestation]
method = "x509"
registration_id = "mydeviceid"

[provisioning.attestation.identity_cert]
method = "est"
common_name = "mydeviceid"

[provisioning.attestation.identity_cert.auto_renew]
rotate_key = true
threshold = "80%"
retry = "4%"
`

const certIssuance = `
[cert_issuance.est]
trusted_certs = ["file:///etc/aziot/est/est-server-ca.pem"]

[cert_issuance.est.urls]
default = "https://est.example.com:8443/.well-known/est"
`

const authBasic = `
[cert_issuance.est.auth]
username = "estuser"
password = "estpwd"
`

const authMTLS = `
[cert_issuance.est.identity_auto_renew]
rotate_key = false
threshold = "1day"
retry = "1day"

[cert_issuance.est.auth]
identity_cert = "file:///etc/aziot/ldevid/ldevid.pem"
identity_pk = "pkcs11:token=edge;object=ldevid?pin-value=1234"
`

const aziotKeys = `
[aziot_keys]
pkcs11_lib_path = "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so"
`

const baseSlot = `pkcs11_base_slot = "pkcs11:token=edge?pin-value=1234"
`

// The three edge methods.
const (
	configDPS     = provisioning + attestationDPS + aziotKeys
	configESTBA   = provisioning + attestationEST + certIssuance + authBasic + aziotKeys + baseSlot
	configESTMTLS = provisioning + attestationEST + certIssuance + authMTLS + aziotKeys + baseSlot
)

func parse(t *testing.T, text string) *Super {
	t.Helper()
	s, err := ParseSuper([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseSuper(t *testing.T) {
	t.Parallel()
	ldevid := KeyLocation{Token: &TokenURI{Token: "edge", Object: "ldevid", HasObject: true, PIN: "1234", HasPIN: true}}

	s := parse(t, configDPS)
	if s.Source != "dps" || s.GlobalEndpoint != "https://global.azure-devices-provisioning.net/" || s.IDScope != "0ne00AAAAAA" ||
		s.EST != nil || s.Reprovisioning != "Dynamic" {
		t.Errorf("dps: %+v", s)
	}
	want := Attestation{Preloaded: &KeyPair{Cert: "file:///etc/aziot/ldevid/device-id.pem", Key: ldevid}}
	if !reflect.DeepEqual(s.Attestation, want) {
		t.Errorf("dps: %+v", s.Attestation)
	}

	s = parse(t, configESTBA)
	want = Attestation{RegistrationID: "mydeviceid", Issued: &Issuance{
		Method: "est", CommonName: "mydeviceid", AutoRenew: &AutoRenew{RotateKey: true, Threshold: "80%", Retry: "4%"},
	}}
	if !reflect.DeepEqual(s.Attestation, want) {
		t.Errorf("est-ba: %+v", s.Attestation)
	}
	est := &EST{
		TrustedCerts:      []string{"file:///etc/aziot/est/est-server-ca.pem"},
		IdentityAutoRenew: AutoRenew{RotateKey: true, Threshold: "80%", Retry: "4%"},
		Auth:              &ESTAuth{Username: "estuser", Password: "estpwd", HasBasic: true},
		URLs:              map[string]string{"default": "https://est.example.com:8443/.well-known/est"},
	}
	if !reflect.DeepEqual(s.EST, est) {
		t.Errorf("est-ba: %+v", s.EST)
	}

	s = parse(t, configESTMTLS)
	est.IdentityAutoRenew = AutoRenew{Threshold: "1day", Retry: "1day"}
	est.Auth = &ESTAuth{Identity: &KeyPair{Cert: "file:///etc/aziot/ldevid/ldevid.pem", Key: ldevid}}
	if !reflect.DeepEqual(s.EST, est) {
		t.Errorf("est-mtls: %+v", s.EST)
	}
	if s.AziotKeys["pkcs11_base_slot"] != "pkcs11:token=edge?pin-value=1234" {
		t.Errorf("est-mtls: %+v", s.AziotKeys)
	}
}

// TestTraps holds what is surprising about the real parser: each case changes a good config.toml.
func TestTraps(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, config, old, new string
		err                    string // must be in the error; empty: none
		check                  func(*Super) bool
	}{
		{"unknown keys are ignored", configDPS, "id_scope", "nonsense = 1\nid_scope", "", nil},
		{"a misspelt optional key too", configESTBA, "registration_id", "registraton_id", "",
			func(s *Super) bool { return s.Attestation.RegistrationID == "" }},
		{"no provisioning", configDPS, "[provisioning]", "[provisoning]", "`source`", nil},
		{"no source", configDPS, `source = "dps"`, "", "`source`", nil},
		{"unknown source", configDPS, `"dps"`, `"DPS"`, "unknown variant `DPS`", nil},
		{"no id scope", configDPS, "id_scope", "idscope", "`id_scope`", nil},
		{"endpoint without scheme", configDPS, `"https://global`, `"global`, "global_endpoint", nil},
		{"no attestation", configDPS, "[provisioning.attestation]", "[nonsense]", "`attestation`", nil},
		{"registration id is a number", configESTBA, `registration_id = "mydeviceid"`, "registration_id = 1", "is an integer", nil},

		{"certificate without key", configDPS, "identity_pk", "identity_key", "untagged enum X509Identity", nil},
		{"key without scheme", configDPS, `"pkcs11:token`, `"token`, "untagged enum X509Identity", nil},
		{"key without token", configDPS, "token=edge;", "", "untagged enum X509Identity", nil},
		{"relative certificate", configDPS, "file:///etc", "etc", "untagged enum X509Identity", nil},
		{"issued wins over a key beside it", configESTBA, "registration_id", "identity_pk = \"pkcs11:nonsense\"\nregistration_id", "",
			func(s *Super) bool { return s.Attestation.Issued != nil && s.Attestation.Preloaded == nil }},
		{"unknown method of issuance", configESTBA, `method = "est"`, `method = "EST"`, "untagged enum X509Identity", nil},
		{"auto_renew without retry", configESTBA, `retry = "4%"`, "", "missing field `retry`", nil},
		{"auto_renew without rotate_key", configESTBA, "rotate_key = true", "", "missing field `rotate_key`", nil},
		{"threshold in hours", configESTBA, `"80%"`, `"80hour"`, "no period", nil},
		{"threshold of 100 %", configESTBA, `"80%"`, `"100%"`, "no period", nil},
		{"threshold in minutes", configESTBA, `"80%"`, `"90min"`, "", nil},
		{"expiry of no days", configESTBA, `method = "est"`, "method = \"est\"\nexpiry_days = 0", "expiry_days", nil},
		{"subject", configESTBA, `common_name = "mydeviceid"`, `subject = { CN = "x", O = "y" }`, "",
			func(s *Super) bool { return s.Attestation.Issued.Subject["O"] == "y" }},

		{"username without password is no authentication", configESTBA, `password = "estpwd"`, "", "",
			func(s *Super) bool { return s.EST.Auth == nil }},
		{"a key with a typo is no authentication", configESTMTLS, "identity_pk = \"pkcs11:token", "identity_pk = \"pkcs11:tokn", "",
			func(s *Super) bool { return s.EST.Auth == nil }},
		{"bootstrap wins", configESTMTLS, "[cert_issuance.est.auth]",
			"[cert_issuance.est.auth]\nbootstrap_identity_cert = \"file:///b.pem\"\nbootstrap_identity_pk = \"file:///b.key\"", "",
			func(s *Super) bool { return s.EST.Auth.Identity == nil && s.EST.Auth.Bootstrap.Key.File == "/b.key" }},
		{"half a bootstrap does not", configESTMTLS, "[cert_issuance.est.auth]",
			"[cert_issuance.est.auth]\nbootstrap_identity_cert = \"file:///b.pem\"", "",
			func(s *Super) bool { return s.EST.Auth.Identity != nil && s.EST.Auth.Bootstrap == nil }},
		{"trusted_certs is a path", configESTBA, `"file:///etc/aziot/est`, `"/etc/aziot/est`, "relative", nil},
		{"EST URL without scheme", configESTBA, `"https://est.example.com:8443`, `"est.example.com`, "relative", nil},
		{"identity_auto_renew without retry", configESTMTLS, "retry = \"1day\"", "", "missing field `retry`", nil},

		{"aziot_keys must be strings", configDPS, "pkcs11_lib_path = ", "slot = 1\npkcs11_lib_path = ", "is an integer", nil},
		{"any key of aziot_keys goes through", configDPS, "pkcs11_lib_path = ", "nonsense = \"1\"\npkcs11_lib_path = ", "", nil},
		{"preloaded key of unknown scheme", configDPS, "[aziot_keys]", "[preloaded_keys]\nx = \"tpm:1\"\n[aziot_keys]", "unknown scheme", nil},
		{"reprovisioning mode", configDPS, "\n[provisioning]", "auto_reprovisioning_mode = \"AlwaysOnStartup\"\n[provisioning]", "",
			func(s *Super) bool { return s.Reprovisioning == "AlwaysOnStartup" }},
		{"unknown reprovisioning mode", configDPS, "\n[provisioning]", "auto_reprovisioning_mode = \"always\"\n[provisioning]", "unknown variant", nil},
		{"short cloud timeout", configDPS, "\n[provisioning]", "cloud_timeout_sec = 69\n[provisioning]", "less than 70", nil},
		{"no TOML", configDPS, "[provisioning]", "[provisioning", "", nil},
	} {
		if !strings.Contains(test.config, test.old) {
			t.Fatalf("%s: the case changes nothing", test.name)
		}
		s, err := ParseSuper([]byte(strings.Replace(test.config, test.old, test.new, 1)))
		switch {
		case test.name == "no TOML":
			if err == nil {
				t.Errorf("%s: no error", test.name)
			}
		case test.err == "" && err != nil, test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
			t.Errorf("%s: %v", test.name, err)
		case test.check != nil && !test.check(s):
			t.Errorf("%s: %+v", test.name, s)
		}
	}
}
