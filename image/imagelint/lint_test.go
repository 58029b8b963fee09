package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A root is what lies where: "MODE CONTENT", or "-> TARGET" of a link. A path
// that ends in a slash is a folder.
type root map[string]string

// clean is a root in which nothing is to be found.
var clean = root{
	"etc/machine-id":                      "0444 uninitialized\n",
	"var/lib/dbus/machine-id":             "-> /etc/machine-id",
	"etc/ssh/sshd_config":                 "0644 ",
	"etc/tpm2cloud/tpm2cloud.toml":        "0644 [idevid.enroll]\nserver = \"est.example.com\"\n",
	"etc/tpm2cloud/credentials/":          "0700",
	"var/lib/tpm2cloud/pkcs11/":           "2770",
	"var/lib/aziot/keyd/":                 "0700",
	"etc/aziot/keyd/config.d/":            "0700",
	"etc/aziot/config.toml.edge.template": "0600 [provisioning]\n",
	"var/lib/apt/lists/lock":              "0640 ",
	"var/lib/apt/lists/partial/":          "0700",
	"var/lib/systemd/deb-x/":              "0755",
	"root/.bashrc":                        "0644 ",
	"home/pi/notes":                       "0644 ",
}

func (r root) with(more root) root {
	all := maps.Clone(r)
	maps.Copy(all, more)
	return all
}

func (r root) without(name string) root {
	rest := maps.Clone(r)
	delete(rest, name)
	return rest
}

// folder writes a root to a folder.
func (r root) folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range sorted(r) {
		what, content, _ := strings.Cut(r[name], " ")
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		if what == "->" {
			must(t, os.Symlink(content, path))
			continue
		}
		var mode uint32
		if _, err := fmt.Sscanf(what, "%o", &mode); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			must(t, os.MkdirAll(path, 0o755))
		} else {
			must(t, os.WriteFile(path, []byte(content), 0o600))
		}
		must(t, os.Chmod(path, os.FileMode(mode&0o777)))
	}
	return dir
}

// image writes a root to an image with a partition table of that label, and a
// FAT partition before it; without a label to one of a single file system.
func (r root) image(t *testing.T, label string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "an image?.img") // a name that debugfs would take for options
	ext := filepath.Join(t.TempDir(), "ext4")
	tests(t, "mke2fs", "-q", "-t", "ext4", "-E", fmt.Sprintf("root_owner=%d:%d", os.Getuid(), os.Getgid()), "-d", r.folder(t), ext, "4M")
	if label == "" {
		must(t, os.Rename(ext, image))
		return image
	}
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 16<<20))
	sfdisk := exec.Command("/usr/sbin/sfdisk", "-q", image)
	sfdisk.Stdin = strings.NewReader("label: " + label + "\nstart=1MiB, size=8MiB\nstart=10MiB, size=4MiB\n")
	if out, err := sfdisk.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v: %s", err, out)
	}
	tests(t, "mformat", "-i", image+"@@1M", "-T", "16384", "::")
	put(t, image, ext, 10<<20)
	return image
}

// put writes a file into another.
func put(t *testing.T, image, part string, offset int64) {
	t.Helper()
	data, err := os.ReadFile(part)
	must(t, err)
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(data, offset)
	must(t, err)
	must(t, f.Close())
}

// tests runs a program that makes what is tested.
func tests(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	if cmd.Err != nil { // a user's PATH has no sbin
		cmd.Path, cmd.Err = "/usr/sbin/"+name, nil
	}
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func runLint(args ...string) (code int, stdout, stderr string) {
	var o, e bytes.Buffer
	code = run(args, &o, &e)
	return code, o.String(), e.String()
}

// findings are the beginnings of the lines: severity, path and what.
func findings(t *testing.T, target string) []string {
	t.Helper()
	code, stdout, stderr := runLint(target)
	if stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	if want := strings.Contains("\n"+stdout, "\nerror: "); want != (code == 1) || code > 1 {
		t.Errorf("exit code %d for:\n%s", code, stdout)
	}
	var heads []string
	for line := range strings.Lines(stdout) {
		head, rest, ok := strings.Cut(line, "; ")
		if ok && !strings.Contains(rest, " (hint: ") {
			t.Errorf("no hint: %s", line)
		}
		if ok {
			heads = append(heads, head)
		}
	}
	return heads
}

var dirty = clean.without("var/lib/aziot/keyd/").with(root{
	"etc/machine-id":                                 "0444 0123456789abcdef0123456789abcdef\n",
	"etc/ssh/ssh_host_ed25519_key":                   "0600 key",
	"etc/ssh/ssh_host_ed25519_key.pub":               "0644 key",
	"var/lib/systemd/random-seed":                    "0600 seed",
	"var/lib/systemd/credential.secret":              "0600 key",
	"var/lib/tpm2cloud/pins/user-pin":                "0600 pin",
	"var/lib/tpm2cloud/pkcs11/tpm2_pkcs11.sqlite3":   "0660 token",
	"var/lib/tpm2cloud/idevid/certificate.pem":       "0644 certificate",
	"var/lib/tpm2cloud-swtpm/tpm2-00.permall":        "0600 state",
	"var/lib/aziot":                                  "-> /data/aziot",
	"data/aziot/keyd/device id":                      "0600 key",
	"etc/aziot/config.toml":                          "0600 [provisioning]\n",
	"etc/aziot/identityd/config.d/00-super.toml":     "0600 hostname = \"x\"\n",
	"var/lib/apt/lists/example_Packages":             "0644 list",
	"var/log/journal/0123/system.journal":            "0640 journal",
	"root/.bash_history":                             "0600 history",
	"home/pi/.python_history":                        "0600 history",
	"etc/tpm2cloud/tpm2cloud.toml.d/50.toml":         "0644 [idevid.enroll]\nusername = \"factory\"\npassword = \"est\"\n[ldevid.enroll]\nca_key = \"/etc/tpm2cloud/ca.key\"\n",
	"etc/tpm2cloud/credentials/est":                  "0600 secret",
	"etc/tpm2cloud/credentials/open":                 "0640 secret",
	"etc/credstore/":                                 "0755",
	"etc/credstore/tpm2cloud.other":                  "0600 secret",
	"etc/tpm2cloud/ca.key":                           "0600 -----BEGIN EC PRIVATE KEY-----\n",
	"etc/tpm2cloud/ek-roots/with a name \"'<2> .pem": "0644 certificate",
})

var dirtyFindings = []string{
	"error: /etc/machine-id: a machine id is set",
	"error: /etc/ssh/ssh_host_ed25519_key: an SSH host key",
	"error: /var/lib/systemd/random-seed: a random seed",
	"error: /var/lib/systemd/credential.secret: a key that a machine makes for itself",
	"error: /var/lib/tpm2cloud/idevid/certificate.pem: a key, certificate or request of one device's IDevID",
	"error: /var/lib/tpm2cloud/pins/user-pin: a PIN of a token",
	"error: /var/lib/tpm2cloud/pkcs11/tpm2_pkcs11.sqlite3: a PKCS#11 token, with wrapped keys",
	"error: /var/lib/tpm2cloud-swtpm/tpm2-00.permall: the state of a software TPM",
	"error: /var/lib/aziot/keyd/device id: state of Azure IoT Edge",
	"error: /etc/aziot/config.toml: the configuration of one device's agent",
	"error: /etc/aziot/identityd/config.d/00-super.toml: an applied configuration of one device's agent",
	"error: /etc/credstore: a folder of secrets with mode 0755",
	"warning: /etc/credstore/tpm2cloud.other: a secret",
	"warning: /etc/tpm2cloud/credentials/est: the EST password of [idevid.enroll], user factory",
	"error: /etc/tpm2cloud/credentials/open: a secret with mode 0640",
	"warning: /etc/tpm2cloud/credentials/open: a secret",
	"warning: /etc/tpm2cloud/ca.key: the private key of the CA of [ldevid.enroll]",
	"error: /var/lib/apt/lists: lists of apt, like example_Packages",
	"error: /home/pi/.python_history: a history of commands",
	"error: /root/.bash_history: a history of commands",
	"warning: /var/log/journal/0123/system.journal: journal or DHCP lease of the machine that the image was made on",
}

// TestFindings: a folder and each kind of image give the same findings, and
// are as before.
func TestFindings(t *testing.T) {
	for _, kind := range []string{"folder", "dos", "gpt", ""} {
		target := func(t *testing.T, r root) string {
			if kind == "folder" {
				return r.folder(t)
			}
			return r.image(t, kind)
		}
		t.Run("dirty "+kind, func(t *testing.T) {
			target := target(t, dirty)
			before := digest(t, target)
			if diff := cmp.Diff(dirtyFindings, findings(t, target)); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			if digest(t, target) != before {
				t.Error("it has changed")
			}
		})
		t.Run("clean "+kind, func(t *testing.T) {
			target := target(t, clean)
			code, stdout, stderr := runLint(target)
			if want := target + ": no findings\n"; code != 0 || stdout != want || stderr != "" {
				t.Errorf("exit code %d, %q, %q; want 0 and %q", code, stdout, stderr, want)
			}
		})
	}
}

// digest is of an image; a folder has none.
func digest(t *testing.T, target string) string {
	t.Helper()
	if info, err := os.Stat(target); err != nil || info.IsDir() {
		return ""
	}
	data, err := os.ReadFile(target)
	must(t, err)
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// TestSecrets: single things that are wrong with secrets.
func TestSecrets(t *testing.T) {
	const drop = "etc/tpm2cloud/tpm2cloud.toml.d/50.toml"
	for _, c := range []struct {
		name string
		root root
		want []string
	}{
		{"clear text", root{drop: "0644 [edge.est]\npassword = \"correct horse\"\n"},
			[]string{"error: /" + drop + ": edge.est.password is a secret in clear text"}},
		{"clear text that only root reads", root{drop: "0600 [edge.est]\npassword = \"correct horse\"\n"},
			[]string{"warning: /" + drop + ": edge.est.password is a secret in clear text"}},
		{"a name of nothing", root{drop: "0644 [tpm]\nowner_auth = \"hunter2\"\n"},
			[]string{"warning: /" + drop + ": tpm.owner_auth names a secret that is not in /etc/tpm2cloud/credentials"}},
		{"a file elsewhere, open to all", root{drop: "0644 [tpm]\nowner_auth = \"/srv/auth\"\n", "srv/auth": "0644 x"},
			[]string{"error: /srv/auth: a secret with mode 0644", "warning: /srv/auth: the TPM's owner_auth"}},
		{"a shared secret", root{drop: "0644 [ldevid.enroll]\nsecret = \"s\"\n", "etc/tpm2cloud/credentials/s": "0600 x"},
			[]string{"warning: /etc/tpm2cloud/credentials/s: the EST secret of [ldevid.enroll]"}},
		{"a folder of credentials, open to all", root{"etc/tpm2cloud/credentials/": "0755"},
			[]string{"error: /etc/tpm2cloud/credentials: a folder of secrets with mode 0755"}},
		{"a key of a CA elsewhere", root{drop: "0644 [idevid.enroll]\nca_key = \"/srv/ca.key\"\n", "srv/ca.key": "0644 -----BEGIN PRIVATE KEY-----\n"},
			[]string{"error: /srv/ca.key: a private key with mode 0644", "warning: /srv/ca.key: the private key of the CA of [idevid.enroll]"}},
		{"an agent's shared key", root{"etc/aziot/old.toml": "0644 [provisioning.authentication]\ndevice_id_pk = { uri = \"file:///x\" }\nconnection_string = \"HostName=a\"\n"},
			[]string{"error: /etc/aziot/old.toml: provisioning.authentication.connection_string is a secret in clear text"}},
		{"empty values", root{drop: "0644 [tpm]\nowner_auth = \"\"\n[ldevid.enroll]\nsecret = \"\"\nca_key = \"\"\n"}, nil},
		{"credentials that are a link", root{"etc/tpm2cloud/credentials/": "0700", "etc/tpm2cloud/credentials/a": "-> /etc/passwd"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, findings(t, clean.with(c.root).folder(t))); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNoTOML(t *testing.T) {
	target := clean.with(root{"etc/tpm2cloud/tpm2cloud.toml.d/50.toml": "0644 [edge\npassword = \"x y\"\n"}).folder(t)
	got := findings(t, target)
	if len(got) != 1 || !strings.HasPrefix(got[0], "warning: /etc/tpm2cloud/tpm2cloud.toml.d/50.toml: it is not TOML: ") {
		t.Errorf("findings: %q", got)
	}
}

// TestBootLoader: systemd-boot keeps a seed on the FAT partition.
func TestBootLoader(t *testing.T) {
	image := clean.image(t, "gpt")
	seed := filepath.Join(t.TempDir(), "random-seed")
	must(t, os.WriteFile(seed, []byte("seed"), 0o600))
	tests(t, "mmd", "-i", image+"@@1M", "::/loader")
	tests(t, "mcopy", "-i", image+"@@1M", seed, "::/loader/random-seed")
	if diff := cmp.Diff([]string{"error: /boot/loader/random-seed: a random seed"}, findings(t, image)); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}

// TestTwoRoots: an image for updates from A to B has two, and both count.
func TestTwoRoots(t *testing.T) {
	image := clean.image(t, "dos")
	must(t, os.Truncate(image, 24<<20))
	put(t, image, clean.with(root{"root/.bash_history": "0600 x"}).image(t, ""), 1<<20)
	if diff := cmp.Diff([]string{"error: partition 1:/root/.bash_history: a history of commands"}, findings(t, image)); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}

// TestLinksStayInside: what links lead to is looked for in the root.
func TestLinksStayInside(t *testing.T) {
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "key"), nil, 0o600))
	links := clean.with(root{
		"var/lib/tpm2cloud-swtpm": "-> " + outside,
		"var/lib/dhcp":            "-> ../../../../../../../../.." + outside,
		"var/lib/dhcpcd":          "-> loop",
		"var/lib/loop":            "-> dhcpcd",
	})
	if got := findings(t, links.with(root{"var/lib/dhcpcd": "-> nowhere"}).folder(t)); got != nil {
		t.Errorf("findings of this machine: %q", got)
	}
	if code, _, stderr := runLint(links.folder(t)); code != 65 || !strings.Contains(stderr, "too many links") {
		t.Errorf("exit code %d, %q for a link to itself", code, stderr)
	}
}

func TestJSON(t *testing.T) {
	target := clean.with(root{"root/.bash_history": "0600 x"}).folder(t)
	code, stdout, stderr := runLint("--json", target)
	var got map[string]any
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != 1 {
		t.Fatalf("exit code %d, %v: %s%s", code, err, stdout, stderr)
	}
	want := map[string]any{"target": target, "errors": 1.0, "warnings": 0.0, "findings": []any{map[string]any{
		"severity": "error", "path": "/root/.bash_history", "what": "a history of commands",
		"why": "it may hold passwords, and tells how the image was made", "hint": "remove it"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
	if _, stdout, _ := runLint("--json", clean.folder(t)); !strings.Contains(stdout, `"findings": []`) {
		t.Errorf("no findings are no list: %s", stdout)
	}
}

// TestBadInput: one line, the code, and what to do.
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	fat := clean.image(t, "dos")
	must(t, os.Truncate(fat, 10<<20)) // the table is there, and the root is not
	broken := clean.image(t, "dos")
	put(t, broken, file("zeros", strings.Repeat("\x00", 900)), 10<<20+1024+100) // behind the magic number
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no name", nil, 64, "0 names are given"},
		{"two names", []string{"a", "b"}, 64, "2 names are given"},
		{"unknown flag", []string{"--fix", "a"}, 64, "not defined: -fix"},
		{"no such file", []string{filepath.Join(dir, "none")}, 64, "there is no such file or folder"},
		{"text", []string{file("text", strings.Repeat("text\n", 1000))}, 65, "neither a partition table nor an ext4 file system"},
		{"empty", []string{file("empty", "")}, 65, "neither a partition table nor an ext4 file system"},
		{"compressed", []string{file("compressed", "\xfd7zXZ\x00....")}, 65, "it is compressed: unpack it first"},
		{"without root", []string{fat}, 65, "no partition is an ext4 file system with a folder /etc"},
		{"data only", []string{root{"data/x": "0644 x"}.image(t, "")}, 65, "no partition is an ext4 file system with a folder /etc"},
		{"broken", []string{broken}, 65, "cannot read partition 2"},
		{"another folder", []string{dir}, 65, "it has no folder etc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, stderr := runLint(c.args...)
			if code != c.code || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 || stdout != "" {
				t.Errorf("exit code %d, %q, %q; want %d and one line with %q", code, stdout, stderr, c.code, c.want)
			}
		})
	}
	if code, stdout, _ := runLint("--help"); code != 0 || !slices.Contains(strings.Split(stdout, "\n"), "usage: image/lint [--json] IMAGE|ROOT") {
		t.Errorf("--help: exit code %d, %q", code, stdout)
	}
}
