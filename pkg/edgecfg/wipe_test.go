package edgecfg

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/plain"
)

// Where a secret may not be touched, as in a unit that sees its directory
// read-only, the run ends well all the same and says what is left to do.
func TestWipeReadOnly(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "factory")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "password"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "tpm2cloud.toml"), []byte("[idevid.enroll]\npassword = \"/factory/password\"\nwipe_secret = true\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(root, root)
	if err != nil {
		t.Fatal(err)
	}
	s := &wipeStep{&Program{cfg: cfg}}
	if obs, err := s.Observe(context.Background()); err != nil || obs.State != step.Partial || obs.Waiting != "" {
		t.Errorf("a file that can be wiped: %+v, %v", obs, err)
	}
	plain.User(t)
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(dir, 0o700)
	obs, err := s.Observe(context.Background())
	if err != nil || obs.State != step.Partial || !strings.Contains(obs.Waiting, "/factory/password here (permission denied): run tpm2cloud-edgecfg by hand") {
		t.Errorf("a file that cannot be wiped: %+v, %v", obs, err)
	}
}
