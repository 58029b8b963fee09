package config

import (
	"os"
	"path/filepath"
	"testing"
)

func TestModule(t *testing.T) {
	c := Default()
	c.root = t.TempDir()
	if got := modulePlaces("arm")[0]; got != "/usr/lib/arm-linux-gnueabihf/pkcs11/libtpm2_pkcs11.so" {
		t.Errorf("armhf's module is looked for at %s", got)
	}
	c.LDevID.Token.Module = "/opt/module.so"
	if got, found := c.Module(); found || got != c.Path("/opt/module.so") {
		t.Errorf("a configured module that is not there: %s, %v", got, found)
	}
	if err := os.MkdirAll(filepath.Dir(c.Path("/opt/module.so")), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.Path("/opt/module.so"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, found := c.Module(); !found || got != c.Path("/opt/module.so") {
		t.Errorf("a configured module: %s, %v", got, found)
	}
}
