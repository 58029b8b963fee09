package edgecfg

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
)

var update = flag.Bool("update", false, "write the golden files anew")

// cases are all forms of config.toml. Names and secrets are of the nasty kind.
func cases() map[string]*inputs {
	all := map[string]*inputs{}
	for _, method := range []config.EdgeMethod{config.EdgeDPS, config.EdgeBasic, config.EdgeMTLS} {
		for _, key := range []config.OperationalKey{config.OperationalTPM, config.OperationalFile} {
			for _, ca := range []string{"", "/etc/aziot/tpm2cloud/est-ca.pem"} {
				in := &inputs{
					edge:     config.Edge{Method: method, IDScope: "0ne00AAAAAA", GlobalEndpoint: "https://global.azure-devices-provisioning.net", OperationalKey: key},
					deviceID: "board-1", token: tokenURI{"edge; 100 % of it", "ldevid", "0123/?&="},
					module: "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so",
					ldevid: "/etc/aziot/tpm2cloud/ldevid.pem", estCA: ca,
				}
				name := string(method) + "-" + string(key)
				if method == config.EdgeDPS && ca != "" {
					continue
				}
				if method != config.EdgeDPS {
					in.edge.EST = config.EdgeEST{Server: "est.example.com:8443", Label: "operational"}
					name += map[bool]string{true: "-system", false: "-named"}[ca == ""]
				}
				if method == config.EdgeBasic {
					in.edge.EST.Username, in.password = "device", "quote\" backslash\\ bell\a ünï"
				}
				all[name] = in
			}
		}
	}
	full := *all["est-mtls-tpm-named"]
	full.edge.Hostname, full.edge.EST.Username, full.password = "board-1.example.com", "device", "both"
	all["est-mtls-full"] = &full
	return all
}

func render(in *inputs) (superConfig, []byte) {
	s := methods[in.edge.Method](in)
	return s, s.render()
}

func TestGolden(t *testing.T) {
	for name, in := range cases() {
		t.Run(name, func(t *testing.T) {
			_, got := render(in)
			golden := filepath.Join("testdata", name+".toml")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What a TOML parser reads is what was meant.
func TestRenderedIsWhatWasMeant(t *testing.T) {
	const (
		key  = "pkcs11:token=edge%3B%20100%20%25%20of%20it;object=ldevid?pin-value=0123%2F%3F%26%3D"
		slot = "pkcs11:token=edge%3B%20100%20%25%20of%20it?pin-value=0123%2F%3F%26%3D"
		pem  = "file:///etc/aziot/tpm2cloud/ldevid.pem"
	)
	for name, in := range cases() {
		t.Run(name, func(t *testing.T) {
			_, text := render(in)
			var got table
			if err := toml.Unmarshal(text, &got); err != nil {
				t.Fatal(err)
			}
			keys := table{"pkcs11_lib_path": in.module}
			attestation := table{"method": "x509"}
			want := table{
				"provisioning": table{"source": "dps", "global_endpoint": in.edge.GlobalEndpoint, "id_scope": "0ne00AAAAAA", "attestation": attestation},
				"aziot_keys":   keys,
			}
			if in.edge.Hostname != "" {
				want["hostname"] = in.edge.Hostname
			}
			if in.edge.Method == config.EdgeDPS {
				attestation["identity_cert"], attestation["identity_pk"] = pem, key
			} else {
				attestation["registration_id"] = "board-1"
				attestation["identity_cert"] = table{"method": "est", "common_name": "board-1",
					"auto_renew": table{"rotate_key": true, "threshold": "80%", "retry": "4%"}}
				auth := table{}
				est := table{"auth": auth, "urls": table{"default": "https://est.example.com:8443/.well-known/est/operational"}}
				if in.password != "" {
					auth["username"], auth["password"] = "device", in.password
				}
				if in.edge.Method == config.EdgeMTLS {
					auth["identity_cert"], auth["identity_pk"] = pem, key
					est["identity_auto_renew"] = table{"rotate_key": false, "threshold": "1day", "retry": "1day"}
				}
				if in.estCA != "" {
					est["trusted_certs"] = []any{"file://" + in.estCA}
				}
				want["cert_issuance"] = table{"est": est}
				if in.edge.OperationalKey == config.OperationalTPM {
					keys["pkcs11_base_slot"] = slot
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSeal(t *testing.T) {
	_, text := render(cases()["dps-tpm"])
	if !ours(text) {
		t.Error("not recognised")
	}
	for name, edited := range map[string]string{
		"value":      strings.Replace(string(text), "0ne00AAAAAA", "0ne00BBBBBB", 1),
		"end":        string(text) + "\n",
		"first line": string(text[1:]),
		"by hand":    "[provisioning]\nsource = \"none\"\n",
		"empty":      "",
	} {
		if ours([]byte(edited)) {
			t.Errorf("%s: taken for ours", name)
		}
	}
}

func TestSameValue(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"https://DPS.example.com", "https://dps.example.com/", true},
		{"https://est.example.com:443/.well-known/est", "https://est.example.com/.well-known/est", true},
		{"https://est.example.com:8443/a", "https://est.example.com/a", false},
		{"https://est.example.com/a", "https://est.example.com/b", false},
		{"pkcs11:token=a-b?pin-value=x.y", "pkcs11:token=a%2Db?pin-value=x%2Ey", true},
		{"pkcs11:token=a?pin-value=1", "pkcs11:token=a?pin-value=2", false},
		{"file:///a%20b", "file:///a b", true},
		{"a:b", "a:c", false},
		{"", "x", false},
	} {
		if got := sameValue(test.a, test.b); got != test.want {
			t.Errorf("%q and %q: %t", test.a, test.b, got)
		}
	}
}
