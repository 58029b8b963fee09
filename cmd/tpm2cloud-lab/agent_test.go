package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-lab/internal/cloud"
)

// fileDevice is a device whose keys are files: what the agent does with them needs no TPM.
type fileDevice struct {
	t    *testing.T
	lab  cloud.Description
	dir  string
	text string // config.toml
}

const fileConfig = `
[provisioning]
source = "dps"
global_endpoint = "DPS_URL"
id_scope = "SCOPE"

[provisioning.attestation]
method = "x509"
registration_id = "device-1"

[provisioning.attestation.identity_cert]
method = "est"
common_name = "device-1"

[cert_issuance.est]
trusted_certs = ["file://SERVER_CA"]

[cert_issuance.est.auth]
username = "USERNAME"
password = "PASSWORD"

[cert_issuance.est.urls]
default = "EST_URL/operational"
`

func newFileDevice(t *testing.T, lab cloud.Description) *fileDevice {
	t.Helper()
	d := &fileDevice{t: t, lab: lab, dir: t.TempDir()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(d.dir, "ldevid.key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	writeFile(t, filepath.Join(d.dir, "ldevid.pem"), issue(t, lab.LDevIDCA, "device-1", key.Public()))
	writeFile(t, filepath.Join(d.dir, "idevid.pem"), issue(t, lab.IDevIDCA, "device-1", key.Public()))
	d.text = strings.NewReplacer(
		"USERNAME", lab.Username, "PASSWORD", lab.Password, "EST_URL", lab.ESTURL, "SERVER_CA", lab.ServerCA,
		"DPS_URL", lab.DPSURL, "SCOPE", lab.IDScope,
	).Replace(fileConfig)
	return d
}

// replace changes config.toml.
func (d *fileDevice) replace(old, new string) {
	d.t.Helper()
	if !strings.Contains(d.text, old) {
		d.t.Fatalf("%q is not in the configuration", old)
	}
	d.text = strings.Replace(d.text, old, strings.ReplaceAll(new, "DIR", d.dir), 1)
}

// agent prepares a run.
func (d *fileDevice) agent(env ...string) (run func() (stdout string), fail func() (stderr string)) {
	d.t.Helper()
	config := filepath.Join(d.dir, "config.toml")
	writeFile(d.t, config, d.text)
	cmd := program(d.t, "agent", "--config", config, "--poll", "1ms", "--system-ca", d.lab.ServerCA)
	cmd.Env = append(cmd.Env, env...)
	return func() string { return output(d.t, cmd) }, func() string { return failure(d.t, exitError, cmd) }
}

const preloaded = `identity_cert = "file://DIR/ldevid.pem"
identity_pk = "file://DIR/ldevid.key"
`

const issued = `
[provisioning.attestation.identity_cert]
method = "est"
common_name = "device-1"
`

// TestAgentFiles provisions with keys in files.
func TestAgentFiles(t *testing.T) {
	t.Parallel()
	lab := serve(t)
	for name, change := range map[string]func(d *fileDevice){
		"est-ba":   func(*fileDevice) {},
		"est-mtls": func(d *fileDevice) { d.replace("username = \""+lab.Username+"\"", preloaded) },
		"bootstrap": func(d *fileDevice) { // an IDevID for an LDevID for an operational certificate
			d.replace("username", `bootstrap_identity_cert = "file://DIR/idevid.pem"
bootstrap_identity_pk = "file://DIR/ldevid.key"
username`)
			d.replace("password", "nonsense")
			d.replace("default =", "est-id = \""+lab.ESTURL+"/ldevid\"\ndefault =")
		},
		"own auth": func(d *fileDevice) {
			d.replace("common_name", preloaded+"common_name")
			d.replace("[cert_issuance.est.auth]", "[nonsense]")
		},
		"dps":              func(d *fileDevice) { d.replace(issued, ""); d.replace(`registration_id = "device-1"`, preloaded) },
		"dps, with the id": func(d *fileDevice) { d.replace(issued, ""); d.replace("registration_id", preloaded+"registration_id") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newFileDevice(t, lab)
			change(d)
			run, _ := d.agent()
			if said := run(); !strings.Contains(said, "device: device-1\n") {
				t.Errorf("said %q", said)
			}
			keys, err := filepath.Glob(filepath.Join(d.dir, "state/keyd/keys/deviceid-*.key"))
			if want := !strings.HasPrefix(name, "dps"); err != nil || (len(keys) == 1) != want {
				t.Fatalf("keys %v, %v", keys, err)
			}
			for _, key := range keys {
				if info, err := os.Stat(key); err != nil || info.Mode() != 0o600 {
					t.Errorf("%v, %v", info.Mode(), err)
				}
			}
		})
	}
}

// TestAgentFails has a case for each thing that keeps a device from being provisioned.
func TestAgentFails(t *testing.T) {
	t.Parallel()
	lab := serve(t)
	dps := func(d *fileDevice) { d.replace(issued, ""); d.replace(`registration_id = "device-1"`, preloaded) }
	for name, test := range map[string]struct {
		change func(d *fileDevice)
		want   string
	}{
		"wrong password":    {func(d *fileDevice) { d.replace(lab.Password, "x") }, "401"},
		"no authentication": {func(d *fileDevice) { d.replace("password", "nonsense") }, "EST auth is not configured"},
		"EST is http":       {func(d *fileDevice) { d.replace(lab.ESTURL, "http://127.0.0.1") }, "is not https"},
		"no EST URL":        {func(d *fileDevice) { d.replace("default = ", "nonsense = ") }, "is not https"},
		"unknown parameter": {func(d *fileDevice) { d.text += "[aziot_keys]\nnonsense = \"1\"\n" }, "unrecognized value"},
		"base slot not there": {func(d *fileDevice) {
			d.text += "[aziot_keys]\npkcs11_lib_path = \"/nonsense\"\npkcs11_base_slot = \"pkcs11:token=x\"\n"
		}, "cannot start keyd"},
		"no registration id":      {func(d *fileDevice) { d.replace("registration_id", "nonsense") }, "registration ID is unknown"},
		"no common name":          {func(d *fileDevice) { d.replace("common_name", "nonsense") }, "registration ID is unknown"},
		"trusted_certs missing":   {func(d *fileDevice) { d.replace(lab.ServerCA, "/nonsense.pem") }, "no such file"},
		"EST host untrusted":      {func(d *fileDevice) { d.replace(lab.ESTURL, lab.ESTURLUntrusted) }, "unknown authority"},
		"EST answers 404":         {func(d *fileDevice) { d.replace("/operational", "/nonsense") }, "404"},
		"certificate without EKU": {func(d *fileDevice) { d.replace("/operational", "/idevid") }, "401"},
		"wrong scope":             {func(d *fileDevice) { d.replace(lab.IDScope, "0ne00000000") }, "unknown id scope"},
		"source is manual":        {func(d *fileDevice) { d.replace(`source = "dps"`, `source = "none"`) }, "not dps"},
		"dps, id is not the common name": {func(d *fileDevice) {
			d.replace(issued, "")
			d.replace(`registration_id = "device-1"`, preloaded+"registration_id = \"device-2\"")
		}, "common name"},
		"dps, certificate missing": {func(d *fileDevice) {
			dps(d)
			d.replace("/ldevid.pem", "/nonsense.pem")
		}, "cannot load certificate device-id"},
		"dps, certificate missing, with the id": {func(d *fileDevice) {
			dps(d)
			d.replace("identity_cert = \"file://"+d.dir+"/ldevid.pem", "registration_id = \"device-1\"\nidentity_cert = \"file:///nonsense.pem")
		}, "would now delete the key"},
		"dps, key missing": {func(d *fileDevice) { dps(d); d.replace("/ldevid.key", "/nonsense.key") }, "no such key"},
		"dps, other key": {func(d *fileDevice) {
			dps(d)
			d.replace(d.dir+"/ldevid.key", strings.TrimSuffix(lab.LDevIDCA, ".pem")+".key")
		}, "is not for key"},
		"dps, token without library": {func(d *fileDevice) {
			dps(d)
			d.replace("file://"+d.dir+"/ldevid.key", "pkcs11:token=edge;object=ldevid")
		}, "pkcs11_lib_path is not set"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newFileDevice(t, lab)
			test.change(d)
			_, fail := d.agent()
			said := fail()
			if !strings.HasPrefix(said, "error: cannot ") || !strings.Contains(said, test.want) || strings.Contains(said, lab.Password) {
				t.Errorf("said %q", said)
			}
		})
	}
}

// TestAgentExpired has an operational certificate that is over: it is renewed only if the
// configuration says so.
func TestAgentExpired(t *testing.T) {
	t.Parallel()
	lab := serve(t, "--fault", `{"kind":"expired","count":1}`)
	d := newFileDevice(t, lab)
	for _, want := range []string{"expired", "auto_renew is not configured"} {
		_, fail := d.agent()
		if said := fail(); !strings.Contains(said, want) {
			t.Errorf("said %q", said)
		}
	}
	d.replace(issued, issued+`
[provisioning.attestation.identity_cert.auto_renew]
rotate_key = true
threshold = "80%"
retry = "4%"
`)
	run, _ := d.agent()
	run()
}

// TestAgentFaults sees the agent take what certd takes of an EST server, and no more.
func TestAgentFaults(t *testing.T) {
	t.Parallel()
	lab := serve(t)
	for _, test := range []struct{ fault, want string }{
		{`{"kind":"no-crlf-base64"}`, ""},
		{`{"kind":"pem-body"}`, ""},
		{`{"kind":"202","retry_after":"1"}`, "202"},
		{`{"kind":"503"}`, "503"},
		{`{"kind":"503","operation":"cacerts"}`, "503"},
		{`{"kind":"html"}`, "content type"},
		{`{"kind":"oversize"}`, "cannot create certificate"},
		{`{"kind":"drop"}`, "unexpected EOF"},
		{`{"kind":"other-key"}`, "not for the key"},
		{`{"kind":"reversed-chain"}`, "not for the key"},
		{`{"kind":"no-clientauth"}`, "401"},
		{`{"kind":"expired"}`, "expired"},
		{`{"kind":"wrong-cn"}`, "is not the registration id"},
		{`{"label":"dps","kind":"failed"}`, "fault failed"},
		{`{"label":"dps","kind":"503"}`, "503"},
	} {
		answer, err := http.Post(lab.ControlURL+"/fault", "application/json", strings.NewReader(test.fault))
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		d := newFileDevice(t, lab)
		run, fail := d.agent()
		if test.want == "" {
			run()
		} else if said := fail(); !strings.Contains(said, test.want) {
			t.Errorf("%s: said %q", test.fault, said)
		}
		clearing, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, lab.ControlURL+"/fault", nil)
		if err != nil {
			t.Fatal(err)
		}
		if answer, err = http.DefaultClient.Do(clearing); err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
	}
}

// TestAgentProxy sees all of the agent's connections go through the proxy of the environment.
func TestAgentProxy(t *testing.T) {
	t.Parallel()
	lab := serve(t)
	run, _ := newFileDevice(t, lab).agent("https_proxy=" + lab.ProxyURL)
	run()
	log, err := os.ReadFile(lab.Log)
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{lab.ESTURL, lab.DPSURL, lab.HubURL} {
		host, _, _ := strings.Cut(strings.TrimPrefix(url, "https://"), "/")
		if !strings.Contains(string(log), `"event":"connect","host":"`+host+`"`) {
			t.Errorf("no CONNECT to %s:\n%s", host, log)
		}
	}
}
