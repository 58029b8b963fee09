package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-lab/internal/cloud"
)

// superConfig is a config.toml as the edge methods need it. BASE, DPS and so on are replaced.
func superConfig(t *testing.T, lab cloud.Description, tok *testToken, method string) string {
	t.Helper()
	text := map[string]string{
		"dps": `
[provisioning.attestation]
method = "x509"
identity_cert = "file://LDEVID"
identity_pk = "LDEVID_URI"

[aziot_keys]
pkcs11_lib_path = "LIBRARY"
`,
		"est-ba": estConfig + `
[cert_issuance.est.auth]
username = "USERNAME"
password = "PASSWORD"
`,
		"est-mtls": estConfig + `
[cert_issuance.est.identity_auto_renew]
rotate_key = false
threshold = "1day"
retry = "1day"

[cert_issuance.est.auth]
identity_cert = "file://LDEVID"
identity_pk = "LDEVID_URI"
`,
	}[method]
	path := filepath.Join(t.TempDir(), "config.toml")
	writeFile(t, path, strings.NewReplacer(
		"LDEVID_URI", ldevidURI, "LDEVID", tok.ldevid, "LIBRARY", tok.library, "TOKEN_URI", tokenURI,
		"USERNAME", lab.Username, "PASSWORD", lab.Password, "EST_URL", lab.ESTURL, "SERVER_CA", lab.ServerCA,
		"DPS_URL", lab.DPSURL, "SCOPE", lab.IDScope,
	).Replace(`
[provisioning]
source = "dps"
global_endpoint = "DPS_URL"
id_scope = "SCOPE"
`+text))
	return path
}

const estConfig = `
[provisioning.attestation]
method = "x509"
registration_id = "device-1"

[provisioning.attestation.identity_cert]
method = "est"
common_name = "device-1"

[provisioning.attestation.identity_cert.auto_renew]
rotate_key = true
threshold = "80%"
retry = "4%"

[aziot_keys]
pkcs11_lib_path = "LIBRARY"
pkcs11_base_slot = "TOKEN_URI"

[cert_issuance.est]
trusted_certs = ["file://SERVER_CA"]

[cert_issuance.est.urls]
default = "EST_URL/operational"
`

// TestAgent provisions a device with each edge method: real TPM, real PKCS#11 library, real EST.
func TestAgent(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ method, algorithm string }{
		{"dps", "EC:prime256v1"},
		{"dps", "RSA:2048"},
		{"est-ba", "EC:prime256v1"},
		{"est-mtls", "EC:prime256v1"},
	} {
		t.Run(test.method+"-"+test.algorithm[:2], func(t *testing.T) {
			t.Parallel()
			lab := serve(t)
			tok := newToken(t, lab, test.algorithm, "device-1")
			config := superConfig(t, lab, tok, test.method)
			agent := func() string {
				return output(t, program(t, "agent", "--config", config, "--poll", "10ms",
					"--system-ca", lab.ServerCA, "--dropin", tok.dropin))
			}
			said := agent()
			hub := strings.TrimPrefix(lab.HubURL, "https://")
			if !strings.Contains(said, "hub: "+hub+"\n") || !strings.Contains(said, "device: device-1\n") || !strings.Contains(said, "$edgeAgent") {
				t.Errorf("agent said %q", said)
			}
			agent()
			enrolments := 0
			if strings.HasPrefix(test.method, "est") {
				enrolments = 1 // the second run has its key and certificate already
			}
			log, err := os.ReadFile(lab.Log)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(log), `"event":"enrol"`); n != enrolments {
				t.Errorf("%d enrolments in the log, not %d:\n%s", n, enrolments, log)
			}
			if strings.Contains(string(log), lab.Password) || strings.Contains(string(log), lab.Secret) {
				t.Error("there is a secret in the log")
			}
		})
	}
}

// TestKeyd asks the stand-in of keyd for keys that are there and keys that are not.
func TestKeyd(t *testing.T) {
	t.Parallel()
	lab := serve(t)
	tok := newToken(t, lab, "EC:prime256v1", "device-1")
	root := shortDir(t)
	tool := toolLink(t, root, "iotedge")
	config, err := os.ReadFile(superConfig(t, lab, tok, "dps"))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(root, "etc/aziot/config.toml"), string(config)+`
[preloaded_keys]
nothing = "`+strings.Replace(ldevidURI, "ldevid", "nothing", 1)+`"
wrong-pin = "pkcs11:token=edge;object=ldevid?pin-value=1"
`)
	output(t, tool("config", "apply"))

	keyd := program(t, "keyd", "--root", root, "--dropin", tok.dropin)
	background(t, keyd)
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(root, "run/aziot/keyd.sock"))
		},
	}}
	for _, test := range []struct {
		query  string
		status int
		body   string
	}{
		{"device-id?api-version=2021-05-01", 200, `{"keyHandle":"sr=`},
		{"nothing?api-version=2021-05-01", 400, `{"message":"a parameter has an invalid value"}`},
		{"a-file?api-version=2021-05-01", 400, `{"message":"a parameter has an invalid value"}`},
		{"wrong-pin?api-version=2021-05-01", 500, `{"message":"internal error"}`},
		{"device-id", 400, `{"message":"api-version not specified"}`},
		{"device-id?api-version=1", 400, `{"message":"invalid api-version`},
	} {
		answer, err := client.Get("http://keyd.sock/keypair/" + test.query)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != test.status || !strings.HasPrefix(string(body), test.body) {
			t.Errorf("%s: %d %s, %v", test.query, answer.StatusCode, body, err)
		}
	}
	client.CloseIdleConnections()
}

// shortDir is a temporary directory whose sockets have short enough paths.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
