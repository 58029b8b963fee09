package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// toolLink links this program as ROOT/usr/bin/NAME.
func toolLink(t *testing.T, root, name string) func(args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(root, "usr/bin", name)
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	return func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), link, args...)
		cmd.Env = append(os.Environ(), asProgram+"=1")
		return cmd
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{}, {"nonsense"}, {"serve"}, {"serve", "--nonsense"}, {"ca", "create"}, {"agent"}, {"keyd"}, {"use"},
		{"serve", "--dir", t.TempDir(), "--fault", `{"kind":"nonsense"}`}} {
		failure(t, exitUsage, program(t, args...))
	}
	if out := output(t, program(t, "--help")); !strings.Contains(out, "serve --dir DIR") {
		t.Errorf("help is %q", out)
	}
	for _, name := range []string{"serve", "ca create", "agent", "keyd", "use"} {
		out := output(t, program(t, append(strings.Fields(name), "--help")...))
		if !strings.HasPrefix(out, "Usage: tpm2cloud-lab "+name+" ") {
			t.Errorf("help of %s is %q", name, out)
		}
	}
}

func TestCACreate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "lab")
	output(t, program(t, "ca", "create", dir))
	if said := failure(t, exitError, program(t, "ca", "create", dir)); !strings.HasPrefix(said, "error: cannot create the CAs: ") {
		t.Errorf("said %q", said)
	}
	keys, err := filepath.Glob(filepath.Join(dir, "*.key"))
	if err != nil || len(keys) != 5 {
		t.Fatalf("keys are %v, %v", keys, err)
	}
	for _, key := range keys {
		info, err := os.Stat(key)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v", key, info.Mode(), err)
		}
	}
	failure(t, exitError, program(t, "serve", "--dir", dir, "--listen", "0.0.0.0:0"))
}

func TestTools(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"iotedge", "aziotctl"} {
		root := t.TempDir()
		tool := toolLink(t, root, name)
		failure(t, 1, tool("config", "apply")) // there is no config.toml
		writeFile(t, filepath.Join(root, "etc/aziot/config.toml"), "[provisioning]\nsource = \"none\"\n")
		output(t, tool("config", "apply"))

		written, err := filepath.Glob(filepath.Join(root, "etc/aziot/*/config.d/00-super.toml"))
		if want := map[string]int{"iotedge": 5, "aziotctl": 4}[name]; err != nil || len(written) != want {
			t.Errorf("%s wrote %v, %v", name, written, err)
		}
		for _, path := range written {
			if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
				t.Errorf("%s has mode %v, %v", path, info.Mode(), err)
			}
		}

		info := filepath.Join(root, "var/lib/aziot/identityd/device_info")
		writeFile(t, info, "{}")
		output(t, tool("system", "restart"))
		if _, err := os.Stat(info); err != nil {
			t.Error(err)
		}
		output(t, tool("system", "reprovision"))
		if _, err := os.Stat(info); !os.IsNotExist(err) {
			t.Errorf("device_info is still there: %v", err)
		}
		failure(t, 1, tool("nonsense"))

		log, err := os.ReadFile(filepath.Join(root, "var/log/iotedge-stand-in.log"))
		if err != nil || strings.Count(string(log), "\n") != 5 || strings.Count(string(log), `"result":"ok"`) != 3 {
			t.Errorf("%s logged %s, %v", name, log, err)
		}
	}
}
