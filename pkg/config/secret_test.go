package config

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/plain"
)

const clear = "correct horse"

// secrets is a configuration which asks for the secret "est" on line 2, below
// a root whose files have nothing wrong with them.
func secrets(t *testing.T, name string) (c *Config, root string) {
	t.Helper()
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	dir := tree(t, map[string]string{"tpm2cloud.toml": "[idevid.enroll]\npassword = \"" + name + "\"\n"})
	root = t.TempDir()
	c, err := Load(dir, root)
	if err != nil {
		t.Fatal(err)
	}
	return c, root
}

func put(t *testing.T, file, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
}

func TestReadSecretPlaces(t *testing.T) {
	c, root := secrets(t, "est")
	creds := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", creds)

	put(t, root+"/etc/tpm2cloud/credentials/est", "by hand\n", 0o400)
	if got, err := c.ReadSecret("est"); got != "by hand" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	put(t, creds+"/tpm2cloud_est", "of the directory", 0o440)
	if got, err := c.ReadSecret("est"); got != "of the directory" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	put(t, creds+"/est", "by systemd", 0o440)
	if got, err := c.ReadSecret("est"); got != "by systemd" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	put(t, root+"/etc/keys/est", "by path\n", 0o600)
	if got, err := c.ReadSecret("/etc/keys/est"); got != "by path" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.Chmod(creds+"/est", 0o444); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadSecret("est"); err == nil || !strings.Contains(err.Error(), "its mode is 0444, which lets others read or change it; allowed: 0640") {
		t.Error(err)
	}
}

func TestReadSecretErrors(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(t *testing.T, file string)
		want string
	}{
		{"missing", func(*testing.T, string) {}, "cannot read the secret FILE: no such file or directory"},
		{"group", func(t *testing.T, f string) { put(t, f, clear, 0o640) },
			"cannot read the secret FILE: its mode is 0640, which lets others read or change it; allowed: 0600"},
		{"others", func(t *testing.T, f string) { put(t, f, clear, 0o602) },
			"cannot read the secret FILE: its mode is 0602, which lets others read or change it; allowed: 0600"},
		{"empty", func(t *testing.T, f string) { put(t, f, "\n", 0o600) }, "cannot use the secret FILE: it is empty"},
		{"two lines", func(t *testing.T, f string) { put(t, f, clear+"\n\n", 0o600) },
			"cannot use the secret FILE: it has a line end or a NUL in it; allowed: one line"},
		{"from Windows", func(t *testing.T, f string) { put(t, f, clear+"\r\n", 0o600) },
			"cannot use the secret FILE: it has a line end or a NUL in it; allowed: one line"},
		{"NUL", func(t *testing.T, f string) { put(t, f, clear+"\x00", 0o600) },
			"cannot use the secret FILE: it has a line end or a NUL in it; allowed: one line"},
		{"long", func(t *testing.T, f string) { put(t, f, strings.Repeat("x", maxSecret+1), 0o600) },
			"cannot read the secret FILE: it is longer than 65536 bytes"},
		{"link", func(t *testing.T, f string) {
			put(t, f+".real", clear, 0o600)
			if err := os.Symlink(f+".real", f); err != nil {
				t.Fatal(err)
			}
		}, "cannot read the secret FILE: this is a symbolic link; allowed: a regular file"},
		{"directory", func(t *testing.T, f string) {
			if err := os.MkdirAll(f, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "cannot read the secret FILE: this is not a file (mode drwx------); allowed: a regular file"},
		{"pipe", func(t *testing.T, f string) {
			put(t, f+".dir", "", 0o600)
			if err := syscall.Mkfifo(f, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "cannot read the secret FILE: this is not a file (mode prw-------); allowed: a regular file"},
		{"owner", func(t *testing.T, f string) {
			if os.Geteuid() != 0 {
				t.Skip("only root can give a file away")
			}
			put(t, f, clear, 0o600)
			if err := os.Chown(f, 12345, 0); err != nil {
				t.Fatal(err)
			}
		}, "cannot read the secret FILE: its owner is user 12345; allowed: root and user 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, root := secrets(t, "est")
			file := root + "/etc/tpm2cloud/credentials/est"
			tt.make(t, file)
			got, err := c.ReadSecret("est")
			want := "cannot use " + c.at.main + ": line 2: idevid.enroll.password: " + strings.ReplaceAll(tt.want, "FILE", file)
			if err == nil || err.Error() != want {
				t.Fatalf("got  %v\nwant %s", err, want)
			}
			if got != "" || strings.Contains(err.Error(), clear) {
				t.Error("the secret got out")
			}
			if step.ClassOf(err) != step.Configuration {
				t.Errorf("class %d", step.ClassOf(err))
			}
		})
	}
}

func TestReadSecretPermission(t *testing.T) {
	plain.User(t)
	c, root := secrets(t, "est")
	put(t, root+"/etc/tpm2cloud/credentials/est", clear, 0)
	if _, err := c.ReadSecret("est"); step.ClassOf(err) != step.Permission {
		t.Error(err)
	}
}

// A unit's user may not look into the directory whose files are credentials.
func TestReadSecretUnit(t *testing.T) {
	plain.User(t)
	c, root := secrets(t, "est")
	t.Setenv("CREDENTIALS_DIRECTORY", t.TempDir())
	put(t, root+"/etc/tpm2cloud/credentials/other", clear, 0o600)
	closed := root + "/etc/tpm2cloud/credentials"
	if err := os.Chmod(closed, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(closed, 0o700) })
	_, err := c.ReadSecret("est")
	if step.ClassOf(err) != step.Configuration || !strings.Contains(err.Error(), `cannot read the secret "est": the unit has no such credential`) ||
		!strings.Contains(step.HintOf(err), "/etc/tpm2cloud/credentials/est") {
		t.Errorf("%v; hint %q", err, step.HintOf(err))
	}
}

// A Config that no file made has no line to name.
func TestReadSecretUnnamed(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	for s, want := range map[Secret]string{
		"":     "cannot read a secret: none is named",
		"/no/": "cannot read the secret /no: no such file or directory",
	} {
		if _, err := Default().ReadSecret(s); err == nil || err.Error() != want || step.ClassOf(err) != step.Configuration {
			t.Errorf("%q: %v", s, err)
		}
	}
}
