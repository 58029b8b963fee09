//go:build boot

package boottest

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// workUnits are those that an update must leave alone.
var workUnits = []string{"tpm2cloud-idevid.service", "tpm2cloud-ldevid.service", "tpm2cloud-edgecfg.service",
	"tpm2cloud.target", "tpm2cloud-retry.timer"}

// The packages of the machine are updated out of the signed repository, while it
// runs. An update that touched an identity could not be taken back.
func TestNspawnUpgrade(t *testing.T) {
	t.Parallel()
	note := scenario(t, "apt upgrade out of the signed repository")
	m, lab := newDevice(t, "amd64", "BENCH-0042")
	m.Boot()
	m.Expect(map[string]string{"tpm2cloud-edgecfg.service": "active"})
	m.PowerOff()
	before := Verify(t, m.TPM, m.Root, lab)

	m.Boot()
	now := version(m)
	next := now + "+1"
	repository := newRepository(t)
	repository.add(t, packages(t, "amd64")...)
	m.Put(repository.source(t))
	conffile := filepath.Join(m.Root, "etc/tpm2cloud/tpm2cloud.toml")
	edited := read(t, conffile) + "# a line of the administrator\n"
	must(t, os.WriteFile(conffile, []byte(edited), 0o644))
	t.Log(m.Run("apt-get", "-o", "APT::Update::Error-Mode=any", "update"))
	t.Log(m.Run("apt-cache", "policy", "tpm2cloud"))

	state := Tree(t, m.Root, "var/lib/tpm2cloud", "etc/tpm2cloud")
	handles, permanent := m.TPM.Handles(t), m.TPM.Permanent(t)
	runs, asked := invocations(m), len(lab.Requests(t))

	repository.add(t, repository.reversion(t, next)...)
	m.Run("apt-get", "-o", "APT::Update::Error-Mode=any", "update")
	said := m.Run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes", "upgrade")
	t.Log(said)
	keep(t, "upgrade.txt", said)
	if got := version(m); got != next {
		t.Errorf("after the upgrade the version is %s, and should be %s", got, next)
	}
	same(t, "files", state, Tree(t, m.Root, "var/lib/tpm2cloud", "etc/tpm2cloud"))
	same(t, "units", runs, invocations(m))
	same(t, "persistent handles", handles, m.TPM.Handles(t))
	if m.TPM.Permanent(t) != permanent {
		t.Error("the upgrade has changed something permanent in the TPM")
	}
	if n := len(lab.Requests(t)); n != asked {
		t.Errorf("the upgrade has sent %d requests", n-asked)
	}
	if read(t, conffile) != edited {
		t.Error("the configuration that the administrator edited is lost")
	}

	// The new programs find everything present.
	m.PowerOff()
	m.Boot()
	m.Expect(map[string]string{"tpm2cloud-idevid.service": "active", "tpm2cloud-ldevid.service": "active", "tpm2cloud-edgecfg.service": "active"})
	same(t, "files after a boot", state, Tree(t, m.Root, "var/lib/tpm2cloud", "etc/tpm2cloud"))
	if n := len(lab.Requests(t)); n != asked {
		t.Errorf("the boot after the upgrade has sent %d requests", n-asked)
	}
	m.PowerOff()
	if after := Verify(t, m.TPM, m.Root, lab); after != before {
		t.Errorf("the identities are others: before %+v, after %+v", before, after)
	}
	note("%s to %s", now, next)
}

// invocations say when each unit was started, and what run of it this is.
func invocations(m *Machine) (list []string) {
	for _, unit := range workUnits {
		show := m.Show(unit)
		list = append(list, strings.Join([]string{unit, show["ActiveState"], show["InvocationID"],
			show["ActiveEnterTimestampMonotonic"], show["InactiveExitTimestampMonotonic"], show["ExecMainPID"]}, " "))
	}
	return list
}

func version(m *Machine) string {
	return strings.TrimSpace(m.Run("dpkg-query", "-W", "-f", "${Version}", "tpm2cloud-idevid"))
}

// repository is an apt repository with a key of its own, on loopback.
type repository struct {
	dir, url string
}

func newRepository(t testing.TB) *repository {
	t.Helper()
	r := &repository{dir: scratch("repository")}
	key := filepath.Join(r.dir, "key")
	home := scratch("gnupg")
	must(t, os.Chmod(home, 0o700))
	env := []string{"GNUPGHOME=" + home}
	command(t, env, "gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", "boottest", "ed25519", "sign", "never")
	must(t, os.WriteFile(key, []byte(command(t, env, "gpg", "--batch", "--armor", "--export-secret-keys")), 0o600))
	command(t, env, "gpgconf", "--kill", "all")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	server := &http.Server{Handler: http.FileServer(http.Dir(filepath.Join(r.dir, "output/public")))}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	r.url = "http://" + listener.Addr().String()
	return r
}

// add publishes packages by the script that users have.
func (r *repository) add(t testing.TB, debs ...string) {
	t.Helper()
	t.Log(command(t, nil, filepath.Join(top, "scripts/repo"), append([]string{"--output", filepath.Join(r.dir, "output"),
		"--key-file", filepath.Join(r.dir, "key"), "--uri", r.url}, debs...)...))
}

// reversion makes the packages of another version.
func (r *repository) reversion(t testing.TB, version string) []string {
	t.Helper()
	dir := filepath.Join(r.dir, version)
	command(t, nil, filepath.Join(top, "scripts/reversion"), append([]string{version, dir}, packages(t, "amd64")...)...)
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	must(t, err)
	return debs
}

// source is what an administrator puts onto a machine to use the repository.
// Debian's own sources go, because the tests are of this one.
func (r *repository) source(t testing.TB) Files {
	t.Helper()
	return Files{
		"/usr/share/keyrings/tpm2cloud-archive-keyring.gpg": {Mode: 0o644, Data: read(t, filepath.Join(r.dir, "output/public/tpm2cloud-archive-keyring.gpg"))},
		"/etc/apt/sources.list.d/tpm2cloud.sources":         {Mode: 0o644, Data: read(t, filepath.Join(r.dir, "output/tpm2cloud.sources"))},
		"/etc/apt/sources.list":                             {Mode: 0o644, Data: ""},
		"/etc/apt/sources.list.d/debian.sources":            {Mode: 0o644, Data: ""},
	}
}

// The single click: a machine with the packages and an empty configuration.
func TestNspawnProvision(t *testing.T) {
	t.Parallel()
	scenario(t, "scripts/provision-tpm2cloud: wrong password, right one, again")
	lab, m := NewLab(t), NewMachine(t, "amd64")
	m.Insert(NewTPM(t))
	all := lab.Configuration(t, "BENCH-0043", m.TPM.Trust)
	const script = "/usr/local/sbin/provision-tpm2cloud"
	m.Put(Files{
		"/etc/tpm2cloud/ek-roots/vendor.pem": all["/etc/tpm2cloud/ek-roots/vendor.pem"],
		"/etc/tpm2cloud/server-ca.pem":       all["/etc/tpm2cloud/server-ca.pem"],
		// What the variables do not say: it is of this laboratory.
		"/etc/tpm2cloud/tpm2cloud.toml.d/55-lab.toml": {Mode: 0o644, Data: `[device]
serial = "BENCH-0043"
model = "Bench"
mac = "02:00:00:00:00:02"

[idevid.enroll]
label = "idevid"
server_ca = "/etc/tpm2cloud/server-ca.pem"

[ldevid.enroll]
label = "ldevid"
server_ca = "/etc/tpm2cloud/server-ca.pem"

[edge]
global_endpoint = "` + lab.DPS + `"

[edge.est]
label = "operational"
server_ca = "/etc/tpm2cloud/server-ca.pem"
`},
		script: {Mode: 0o755, Data: read(t, filepath.Join(top, "scripts/provision-tpm2cloud"))},
	})
	provision := func(password string) (string, int) {
		t.Helper()
		// In a file, because everybody can read an argument list.
		m.Put(Files{"/root/variables": {Mode: 0o600, Data: strings.Join([]string{
			"PLATFORM_OS_ARCH=debian12_amd64", "TPM_HW_SW=hwtpm",
			"IDEVID_CA_EST_FQDN_PORT=" + lab.Server, "IDEVID_CA_EST_USER=" + lab.About["username"], "IDEVID_CA_EST_PASSWORD=" + password,
			"LDEVID_CA_EST_FQDN_PORT=" + lab.Server, "LDEVID_CA_EST_USER=" + lab.About["username"], "LDEVID_CA_EST_PASSWORD=" + password,
			"OPERATIONAL_CA_FQDN_PORT=" + lab.Server, "DPS_SCOPE_ID=" + lab.About["id_scope"],
		}, "\n") + "\n"}})
		out, code := m.Try("bash", "-c", "set -a; . /root/variables; set +a; exec "+script+" bench-0043")
		t.Logf("exit code %d\n%s", code, out)
		if strings.Contains(out, password) {
			t.Error("the password is in the output")
		}
		return out, code
	}
	m.Boot()
	m.Expect(map[string]string{"tpm2cloud-idevid.service": "failed 78"})

	out, code := provision("not-the-password")
	if code != 76 || !strings.Contains(out, "tpm2cloud-idevid.service did not end well") {
		t.Errorf("with a wrong password the exit code is %d, and should be 76", code)
	}
	out, code = provision(lab.About["password"])
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	for _, want := range []string{"idevid-certificate", "ldevid-certificate", "bench-0043"} {
		if !strings.Contains(out, want) {
			t.Errorf("the result does not show %q", want)
		}
	}
	m.Expect(map[string]string{"tpm2cloud-idevid.service": "active", "tpm2cloud-ldevid.service": "active", "tpm2cloud-edgecfg.service": "active"})
	state, runs, asked := Tree(t, m.Root, "var/lib/tpm2cloud", "etc/tpm2cloud"), invocations(m), len(lab.Requests(t))
	if _, code = provision(lab.About["password"]); code != 0 {
		t.Errorf("the second run has exit code %d", code)
	}
	same(t, "files", state, Tree(t, m.Root, "var/lib/tpm2cloud", "etc/tpm2cloud"))
	same(t, "units", runs, invocations(m))
	if n := len(lab.Requests(t)); n != asked {
		t.Errorf("the second run has sent %d requests", n-asked)
	}
	m.PowerOff()
	for _, e := range Journal(t, m.Root) {
		if slices.ContainsFunc([]string{lab.About["password"], "not-the-password"}, func(s string) bool { return strings.Contains(e["MESSAGE"], s) }) {
			t.Errorf("a password is in the journal: %s", e["SYSLOG_IDENTIFIER"])
		}
	}
	if ids := Verify(t, m.TPM, m.Root, lab); ids.LDevName != "bench-0043" {
		t.Errorf("the LDevID is for %s", ids.LDevName)
	}
	if out, err := exec.Command("grep", "-rlF", lab.About["password"], filepath.Join(m.Root, "etc"), filepath.Join(m.Root, "var")).Output(); err == nil {
		for _, name := range lines(string(out)) {
			if filepath.Base(filepath.Dir(name)) != "credentials" {
				t.Errorf("the password is in %s", strings.TrimPrefix(name, m.Root))
			}
		}
	}
}
