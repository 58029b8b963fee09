package edgecfg

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// The agent of these tests is this test's own binary, linked to ROOT/usr/bin
// under the name of the tool. What it is to do is said by files in ROOT/stand-in.
func TestMain(m *testing.M) {
	switch name := filepath.Base(os.Args[0]); name {
	case "iotedge", "aziotctl":
		root := strings.TrimSuffix(filepath.Dir(os.Args[0]), "/usr/bin")
		if err := agentTool(root, name, strings.Join(os.Args[1:], " ")); err != nil {
			fmt.Fprintln(os.Stderr, "Error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func agentTool(root, name, command string) error {
	f, err := os.OpenFile(filepath.Join(root, "stand-in/calls"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Fprintln(f, name, command)
	if len(os.Environ()) != 2 {
		return fmt.Errorf("environment: %q", os.Environ())
	}
	if fail, err := os.ReadFile(filepath.Join(root, "stand-in/fail")); err == nil && strings.HasPrefix(string(fail), command) {
		return errors.New(string(fail))
	}
	switch manner, _ := os.ReadFile(filepath.Join(root, "stand-in/manner")); string(manner) {
	case "endless":
		for {
			fmt.Println("still at it, with", pin)
		}
	case "silent":
		time.Sleep(time.Hour)
	case "leaves somebody":
		// With this one's standard output, which it holds.
		c := exec.Command("sleep", "60")
		c.Stdout = os.Stdout
		if err := c.Start(); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, "stand-in/pid"), strconv.AppendInt(nil, int64(c.Process.Pid), 10), 0o600); err != nil {
			return err
		}
	}
	switch command {
	case "config apply":
		if err := agentApply(root, name); err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(root, "stand-in/cut")); err == nil {
			return errors.New("killed before the services were started")
		}
		return nil
	case "system reprovision":
		return os.Remove(filepath.Join(root, "var/lib/aziot/identityd/device_info"))
	}
	return fmt.Errorf("unknown command %q", command)
}

type table = map[string]any

func at(t any, key string) any {
	for name := range strings.SplitSeq(key, ".") {
		m, _ := t.(table)
		t = m[name]
	}
	return t
}

// agentApply makes of config.toml what the Identity Service would, in its
// notation: URLs in normal form, and all but letters and digits escaped in URIs.
func agentApply(root, name string) error {
	data, err := os.ReadFile(filepath.Join(root, "etc/aziot/config.toml"))
	if err != nil {
		return err
	}
	var c table
	if err := toml.Unmarshal(data, &c); err != nil {
		return err
	}
	keys, certs := table{}, table{}
	attestation := table{"method": "x509", "identity_cert": "device-id", "identity_pk": "device-id"}
	if id := at(c, "provisioning.attestation.registration_id"); id != nil {
		attestation["registration_id"] = table{"CN": id}
	}
	if key := at(c, "provisioning.attestation.identity_pk"); key != nil {
		keys["device-id"], certs["device-id"] = escapeMore(key), at(c, "provisioning.attestation.identity_cert")
	}
	issuance := table{}
	if est, _ := at(c, "cert_issuance.est").(table); est != nil {
		flat := table{"urls": table{"default": est["urls"].(table)["default"]}}
		auth := est["auth"].(table)
		if auth["username"] != nil {
			flat["username"], flat["password"] = auth["username"], auth["password"]
		}
		if auth["identity_pk"] != nil {
			flat["identity_cert"], flat["identity_pk"] = "est-id", "est-id"
			keys["est-id"], certs["est-id"] = escapeMore(auth["identity_pk"]), auth["identity_cert"]
		}
		if ca, _ := est["trusted_certs"].([]any); len(ca) == 1 {
			flat["trusted_certs"], certs["est-server-ca-1"] = []string{"est-server-ca-1"}, ca[0]
		}
		issuance["est"] = flat
		issuance["device-id"] = table{"method": "est", "common_name": at(c, "provisioning.attestation.identity_cert.common_name")}
	}
	aziotKeys := table{"homedir_path": "/var/lib/aziot/keyd"}
	for k, v := range c["aziot_keys"].(table) {
		aziotKeys[k] = escapeMore(v)
	}
	hostname := c["hostname"]
	if hostname == nil {
		hostname = "board"
	}
	daemons := map[string]table{
		"identityd": {"hostname": hostname, "provisioning": table{
			"source":          "dps",
			"global_endpoint": at(c, "provisioning.global_endpoint").(string) + "/",
			"scope_id":        at(c, "provisioning.id_scope"),
			"attestation":     attestation,
		}},
		"certd": {"cert_issuance": issuance, "preloaded_certs": certs},
		"keyd":  {"aziot_keys": aziotKeys, "preloaded_keys": keys},
	}
	if name == "iotedge" {
		daemons["edged"] = table{}
	}
	for daemon, config := range daemons {
		path := filepath.Join(root, "etc/aziot", daemon, "config.d/00-super.toml")
		data, err := toml.Marshal(config)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// escapeMore escapes the characters that only aziot escapes.
func escapeMore(uri any) any {
	s := uri.(string)
	if !strings.HasPrefix(s, "pkcs11:") {
		return s
	}
	return strings.NewReplacer("pin-value", "pin-value", "-", "%2D", ".", "%2E").Replace(s)
}

// serveKeyd answers on keyd's socket with what answer says for an id.
func serveKeyd(t *testing.T, root string, answer func(id string) int) {
	t.Helper()
	socket := filepath.Join(root, "run/aziot/keyd.sock")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /keypair/{id}", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("api-version") != "2021-05-01" || r.Host != "keyd.sock" {
			http.Error(w, "bad request", http.StatusTeapot)
			return
		}
		w.WriteHeader(answer(r.PathValue("id")))
	})
	server := &http.Server{Handler: mux}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
}
