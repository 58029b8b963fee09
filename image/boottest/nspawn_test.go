//go:build boot

package boottest

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The units of this project, and a dependent as their documentation wants it.
const (
	target   = "tpm2cloud.target"
	idevid   = "tpm2cloud-idevid.service"
	ldevid   = "tpm2cloud-ldevid.service"
	edgecfg  = "tpm2cloud-edgecfg.service"
	consumer = "registers.service"
)

var allActive = map[string]string{target: "active", idevid: "active", ldevid: "active", edgecfg: "active"}

// newDevice is a board with a TPM, and a laboratory that it is configured for.
func newDevice(t testing.TB, arch, serial string) (*Machine, *Lab) {
	t.Helper()
	lab := NewLab(t)
	m := NewMachine(t, arch)
	m.Insert(NewTPM(t))
	m.Put(lab.Configuration(t, serial, m.TPM.Trust))
	return m, lab
}

// provisioned is a board after its first boot, off.
func provisioned(t testing.TB, arch, serial string) (*Machine, *Lab) {
	t.Helper()
	m, lab := newDevice(t, arch, serial)
	m.Boot()
	m.Expect(allActive)
	m.PowerOff()
	return m, lab
}

// agent are the stand-ins of Azure IoT Edge: its command, its key service, and
// one unit that depends on ours as their documentation says, and registers.
func agent() Files {
	return Files{
		// The real one restarts its services, so that they read what is new.
		"/usr/bin/iotedge": {Mode: 0o755, Data: `#!/bin/bash
set -e
if [ -e /etc/hold ]; then
	echo held >/etc/aziot/held
	exec sleep infinity
fi
(exec -a /usr/bin/iotedge /usr/bin/tpm2cloud-lab "$@")
[ "$*" != "config apply" ] || exec systemctl restart aziot-keyd.service
[ "$*" != "system stop" ] || exec systemctl stop aziot-keyd.service
`},
		"/etc/sysusers.d/aziot.conf":    {Mode: 0o644, Data: "u aziotks -\nu aziotcs -\nu aziotid -\nu iotedge -\n"},
		"/var/log/iotedge-stand-in.log": {Mode: 0o644},
		// What the stand-in writes beside the agent's configuration: the record of its calls.
		"/etc/systemd/system/tpm2cloud-edgecfg.service.d/stand-in.conf": {Mode: 0o644, Data: "[Service]\nReadWritePaths=/var/log/iotedge-stand-in.log\n"},
		// It reads the agent's configuration whosever it is; the TPM and the token it reaches by its groups.
		"/etc/systemd/system/aziot-keyd.service": {Mode: 0o644, Data: `[Unit]
ConditionPathExists=/etc/aziot/keyd/config.d/00-super.toml
[Service]
ExecStart=/usr/bin/tpm2cloud-lab keyd --root /
User=aziotks
RuntimeDirectory=aziot
AmbientCapabilities=CAP_DAC_READ_SEARCH
[Install]
WantedBy=multi-user.target
`},
		"/etc/systemd/system/multi-user.target.wants/aziot-keyd.service": {Link: "/etc/systemd/system/aziot-keyd.service"},
		"/etc/systemd/system/" + consumer: {Mode: 0o644, Data: `[Unit]
Requires=tpm2cloud-edgecfg.service
After=tpm2cloud-edgecfg.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/tpm2cloud-lab agent --config /etc/aziot/config.toml --state /var/lib/aziot --system-ca /etc/tpm2cloud/server-ca.pem --poll 50ms \
	--dropin /etc/systemd/system/aziot-keyd.service.d/50-tpm2cloud.conf
`},
		consumerWanted: {Link: "/etc/systemd/system/" + consumer},
	}
}

const consumerWanted = "/etc/systemd/system/multi-user.target.wants/" + consumer

// registered demands that the cloud knows the device by this name.
func registered(t testing.TB, lab *Lab, id string) {
	t.Helper()
	if !slices.ContainsFunc(lab.Requests(t), func(r Request) bool {
		return r.Event == "registration" && r.ID == id && r.Status == http.StatusOK
	}) {
		t.Errorf("%s is not registered with the cloud", id)
	}
}

// event is the one entry with a MESSAGE_ID that a unit's program wrote.
func event(t testing.TB, m *Machine, unit, id string) Entry {
	t.Helper()
	entries := m.Journal("MESSAGE_ID="+id, "_SYSTEMD_UNIT="+unit)
	if len(entries) == 0 {
		t.Fatalf("%s wrote no event %s to the journal", unit, id)
	}
	return entries[len(entries)-1]
}

// says demands an event with a text.
func says(t testing.TB, m *Machine, unit, id string, texts ...string) {
	t.Helper()
	e := event(t, m, unit, id)
	for _, text := range texts {
		if !strings.Contains(e["MESSAGE"], text) && !strings.Contains(e["TPM2CLOUD_HINT"], text) {
			t.Errorf("%s does not tell %q: %s; hint: %s", unit, text, e["MESSAGE"], e["TPM2CLOUD_HINT"])
		}
	}
}

// seconds between two of systemd's monotonic times.
func seconds(t testing.TB, from, to string) float64 {
	t.Helper()
	a, err := strconv.ParseFloat(from, 64)
	must(t, err)
	b, err := strconv.ParseFloat(to, 64)
	must(t, err)
	return (b - a) / 1e6
}

// The first test does not run beside others, because it measures time.
func TestNspawnFirstBoot(t *testing.T) {
	note := scenario(t, "first boot, the agent registers")
	m, lab := newDevice(t, "amd64", "BENCH-0001")
	m.Put(agent())
	m.Boot()
	m.Expect(allActive)
	m.Expect(map[string]string{consumer: "active", "aziot-keyd.service": "active", "tpm2cloud-retry.timer": "active"})
	took := seconds(t, m.Show(idevid)["InactiveExitTimestampMonotonic"], m.Show(target)["ActiveEnterTimestampMonotonic"])
	online := seconds(t, m.Show("network-online.target")["ActiveEnterTimestampMonotonic"], m.Show(target)["ActiveEnterTimestampMonotonic"])
	note("%.2f s from the first unit's start to the target, %.2f s from network-online", took, online)
	if took > 1.5 || online > 1.5 {
		t.Errorf("the programs took %.2f s, %.2f s after the network; 1.5 s are allowed", took, online)
	}
	for unit, name := range map[string]string{idevid: "tpm2cloud-idevid", ldevid: "tpm2cloud-ldevid", edgecfg: "tpm2cloud-edgecfg"} {
		if e := event(t, m, unit, ready); e["SYSLOG_IDENTIFIER"] != name || e["TPM2CLOUD_COMMON_NAME"] == "" {
			t.Errorf("%s is ready, and the journal has other fields: %v", name, e)
		}
		if text := m.Run("journalctl", "-x", "--no-pager", "-u", unit); !strings.Contains(text, "Every step of "+name+" is present.") {
			t.Errorf("journalctl -x does not explain the events of %s:\n%s", unit, text)
		}
	}
	m.Halt()
	// The TPM has had power since the boot.
	if handles := m.TPM.Transient(t); len(handles) > 0 {
		t.Errorf("left in the TPM: %v", handles)
	}
	m.TPM.Refuses(t, "tpm2_nvundefine", "-C", "p", idevidIndex)
	m.TPM.Refuses(t, "tpm2_nvundefine", "-C", "o", idevidIndex)
	m.TPM.Refuses(t, "tpm2_clear", "-c", "p")
	m.TPM.Refuses(t, "tpm2_clear", "-c", "l")
	m.TPM.Cut()

	ids := Verify(t, m.TPM, m.Root, lab)
	if ids.LDevName != "bench-0001" {
		t.Errorf("the owner's identity is called %q", ids.LDevName)
	}
	registered(t, lab, "bench-0001")
	for _, label := range []string{"idevid", "ldevid", "operational"} {
		if n := lab.Enrolments(t, label); n != 1 {
			t.Errorf("%d certificates were made for %s", n, label)
		}
	}
	journal := JournalText(m.Root)
	for _, secret := range []string{lab.About["password"], read(t, filepath.Join(m.Root, "var/lib/tpm2cloud/pins/user-pin")), read(t, filepath.Join(m.Root, "var/lib/tpm2cloud/pins/so-pin"))} {
		if strings.Contains(journal, strings.TrimSpace(secret)) {
			t.Error("a secret is in the journal")
		}
	}
	for path, want := range map[string]string{
		"var/lib/tpm2cloud":                            "drwxr-xr-x tpm2cloud tpm2cloud",
		"var/lib/tpm2cloud/pins":                       "drwx------ tpm2cloud tpm2cloud",
		"var/lib/tpm2cloud/pkcs11":                     "drwxrws--- tpm2cloud tpm2cloud-token",
		"etc/tpm2cloud/credentials":                    "drwx------ root root",
		"etc/aziot/config.toml":                        "-rw------- root root",
		"var/lib/tpm2cloud/pkcs11/tpm2_pkcs11.sqlite3": "-rw-rw---- tpm2cloud tpm2cloud-token",
	} {
		if got := strings.TrimSpace(command(t, nil, "chroot", m.Root, "stat", "-c", "%A %U %G", "/"+path)); got != want {
			t.Errorf("/%s is %s, and should be %s", path, got, want)
		}
	}
}

func TestNspawnSecondBoot(t *testing.T) {
	t.Parallel()
	scenario(t, "second boot changes nothing")
	secondBoot(t, "amd64", "BENCH-0002")
}

func TestNspawnArmhf(t *testing.T) {
	t.Parallel()
	scenario(t, "armhf: first boot, and a second one that changes nothing")
	secondBoot(t, "armhf", "BENCH-0003")
}

func secondBoot(t *testing.T, arch, serial string) {
	m, lab := newDevice(t, arch, serial)
	m.Put(agent())
	if arch != "amd64" {
		m.emulated()
	}
	m.Boot()
	m.Expect(allActive)
	m.PowerOff()
	registered(t, lab, strings.ToLower(serial))
	ids := Verify(t, m.TPM, m.Root, lab)
	// The agent asks the cloud at each boot; here only our programs count.
	must(t, os.Remove(filepath.Join(m.Root, consumerWanted)))

	folders := []string{"etc", "var/lib/tpm2cloud", "var/lib/aziot"}
	requests, before := len(lab.Requests(t)), Tree(t, m.Root, folders...)
	m.TPM.On(t)
	permanent := m.TPM.Permanent(t)
	m.Boot()
	m.Expect(allActive)
	m.Halt()
	if m.TPM.Permanent(t) != permanent {
		t.Error("something persistent changed in the TPM")
	}
	m.TPM.Cut()
	same(t, "files", before, Tree(t, m.Root, folders...))
	for _, r := range lab.Requests(t)[requests:] {
		t.Errorf("the second boot asked: %+v", r)
	}
	if again := Verify(t, m.TPM, m.Root, lab); again != ids {
		t.Error("the identities are not the same")
	}
}

// emulated takes away what systemd cannot set up under qemu-user, which lacks the
// system calls for mounts in a namespace: the sandbox, and credentials. A kernel of
// its own has them, and the boots of armhf in QEMU show that.
func (m *Machine) emulated() {
	m.t.Helper()
	const without = `[Service]
LoadCredential=
ProtectSystem=no
ProtectHome=no
ProtectKernelTunables=no
ProtectKernelModules=no
ProtectKernelLogs=no
ProtectControlGroups=no
ProtectHostname=no
ProtectProc=default
PrivateTmp=no
PrivateDevices=no
PrivateMounts=no
PrivateUsers=no
PrivateIPC=no
ReadWritePaths=
`
	for _, unit := range []string{idevid, ldevid, edgecfg} {
		m.Put(Files{"/etc/systemd/system/" + unit + ".d/50-emulated.conf": {Mode: 0o644, Data: without}})
	}
	const secret = "/etc/tpm2cloud/est-password"
	m.Put(Files{
		secret: {Mode: 0o600, Data: read(m.t, filepath.Join(m.Root, "etc/tpm2cloud/credentials/est-password"))},
		"/etc/tpm2cloud/tpm2cloud.toml.d/70-emulated.toml": {Mode: 0o644, Data: "[idevid.enroll]\npassword = \"" + secret + "\"\n"},
	})
	command(m.t, nil, "chroot", m.Root, "chown", "tpm2cloud", secret)
	// Its unit fails for the same reason as the others would.
	command(m.t, nil, "chroot", m.Root, "systemd-sysusers", "aziot.conf")
}

func TestNspawnFactory(t *testing.T) {
	t.Parallel()
	scenario(t, "IDevID made at the factory, and a firmware that closes the platform")
	m, lab := newDevice(t, "amd64", "BENCH-0014")
	// The factory makes the manufacturer's identity, and nothing else.
	for _, unit := range []string{ldevid, edgecfg} {
		m.Put(Files{"/etc/systemd/system/" + unit: {Link: "/dev/null"}})
	}
	m.Boot()
	m.Expect(map[string]string{target: "active", idevid: "active", ldevid: "inactive", edgecfg: "inactive"})
	m.PowerOff()
	same(t, "handles at the factory", []string{ekHandle, idevidHandle}, m.TPM.Handles(t))
	key, certificate := m.TPM.Key(t, idevidHandle), m.TPM.NV(t, idevidIndex)

	m.Reflash()
	m.Insert(m.TPM)
	m.Put(lab.Configuration(t, "BENCH-0014", m.TPM.Trust))
	m.TPM.On(t)
	m.TPM.Tool(t, "tpm2_changeauth", "-c", "p", "of-the-firmware")
	m.Boot()
	m.Expect(allActive)
	m.PowerOff()
	Verify(t, m.TPM, m.Root, lab)
	if m.TPM.Key(t, idevidHandle) != key || m.TPM.NV(t, idevidIndex) != certificate {
		t.Error("the factory's identity was changed")
	}
	if n := lab.Enrolments(t, "idevid"); n != 1 {
		t.Errorf("%d manufacturer's certificates were made", n)
	}
}

func TestNspawnPlatformClosed(t *testing.T) {
	t.Parallel()
	scenario(t, "a closed platform and no IDevID: refused, until its storage is the owner's")
	m, lab := newDevice(t, "amd64", "BENCH-0015")
	m.TPM.On(t)
	m.TPM.Tool(t, "tpm2_changeauth", "-c", "p", "of-the-firmware")
	m.Boot()
	m.Expect(map[string]string{idevid: "failed 65", ldevid: "inactive", edgecfg: "inactive"})
	says(t, m, idevid, cannotGoOn, "platform", `storage = "owner"`)
	m.Put(Files{"/etc/tpm2cloud/tpm2cloud.toml.d/70-storage.toml": {Mode: 0o644, Data: "[idevid]\nstorage = \"owner\"\n"}})
	m.Run("systemctl", "start", target)
	m.Expect(allActive)
	m.PowerOff()
	Verify(t, m.TPM, m.Root, lab)
}

func TestNspawnTwoMachines(t *testing.T) {
	t.Parallel()
	scenario(t, "two machines from one image have different identities")
	lab := NewLab(t)
	first, second := NewMachine(t, "amd64"), NewMachine(t, "amd64")
	first.Insert(NewTPM(t))
	second.Insert(NewTPM(t))
	// The boards of this test have the same serial number, so their names are of their TPMs.
	var ids []Identities
	for _, m := range []*Machine{first, second} {
		m.Put(lab.Configuration(t, "BENCH-0017", m.TPM.Trust))
		m.Put(Files{"/etc/tpm2cloud/tpm2cloud.toml.d/70-names.toml": {Mode: 0o644, Data: "[idevid]\ncommon_name = \"{ek}\"\nserial_number = \"{ek}\"\n[ldevid]\ncommon_name = \"{ek}\"\n"}})
	}
	same(t, "the image's configuration", contents(t, first.Root, "etc"), contents(t, second.Root, "etc"))
	for _, m := range []*Machine{first, second} {
		m.Boot()
		m.Expect(allActive)
		m.PowerOff()
		ids = append(ids, Verify(t, m.TPM, m.Root, lab))
	}
	a, b := ids[0], ids[1]
	for what, values := range map[string][2]string{
		"EK": {a.EK, b.EK}, "IDevID key": {a.IDevID, b.IDevID}, "LDevID key": {a.LDevID, b.LDevID},
		"IDevID name": {a.IDevIDName, b.IDevIDName}, "LDevID name": {a.LDevName, b.LDevName},
		"machine-id": {read(t, filepath.Join(first.Root, "etc/machine-id")), read(t, filepath.Join(second.Root, "etc/machine-id"))},
		"PIN":        {read(t, filepath.Join(first.Root, "var/lib/tpm2cloud/pins/user-pin")), read(t, filepath.Join(second.Root, "var/lib/tpm2cloud/pins/user-pin"))},
	} {
		if values[0] == values[1] {
			t.Errorf("both machines have the same %s: %s", what, values[0])
		}
	}
}

// contents lists files as Tree does, without the time at which they were written.
func contents(t testing.TB, root string, folders ...string) []string {
	t.Helper()
	list := Tree(t, root, folders...)
	for i, line := range list {
		if f := strings.Fields(line); len(f) == 6 && f[4] != "->" {
			list[i] = strings.Join(append(f[:4], f[5]), " ")
		}
	}
	return list
}

func TestNspawnOtherBoard(t *testing.T) {
	t.Parallel()
	scenario(t, "a disk moved to a board with another TPM: refused, nothing lost; or discarded")
	m, lab := provisioned(t, "amd64", "BENCH-0018")
	ids := Verify(t, m.TPM, m.Root, lab)
	own, other := m.TPM, NewTPM(t)
	state := Tree(t, m.Root, "var/lib/tpm2cloud", "etc/aziot")
	requests := len(lab.Requests(t))

	m.TPM = other
	m.Boot()
	m.Expect(map[string]string{target: "active", idevid: "failed 65", ldevid: "inactive", edgecfg: "inactive"})
	says(t, m, idevid, otherTPM, "/var/lib/tpm2cloud", "put the disk back")
	m.PowerOff()
	same(t, "files", state, Tree(t, m.Root, "var/lib/tpm2cloud", "etc/aziot"))
	for _, r := range lab.Requests(t)[requests:] {
		t.Errorf("on the other board it asked: %+v", r)
	}
	for _, handle := range []string{ldevidHandle, idevidHandle} {
		if slices.Contains(other.Handles(t), handle) {
			t.Errorf("the other TPM has got a key at %s", handle)
		}
	}

	m.TPM = own
	m.Boot()
	m.Expect(allActive)
	m.PowerOff()
	same(t, "files on the own board again", state, Tree(t, m.Root, "var/lib/tpm2cloud", "etc/aziot"))
	if Verify(t, own, m.Root, lab) != ids {
		t.Error("the identities are not what they were on their own board")
	}

	m.TPM = other
	m.Put(Files{"/etc/tpm2cloud/tpm2cloud.toml.d/70-foreign.toml": {Mode: 0o644, Data: "[run]\non_foreign_state = \"discard\"\n"}})
	m.Boot()
	m.Expect(allActive)
	m.PowerOff()
	if now := Verify(t, other, m.Root, lab); now.LDevID == ids.LDevID || now.IDevID == ids.IDevID {
		t.Error("the other board has an identity of the first")
	}
}

func TestNspawnReflash(t *testing.T) {
	t.Parallel()
	scenario(t, "the same board reflashed three times: IDevID stays, LDevID is replaced")
	m, lab := provisioned(t, "amd64", "BENCH-0019")
	before := Verify(t, m.TPM, m.Root, lab)
	indices := listed(m.TPM.Tool(t, "tpm2_getcap", "handles-nv-index"))
	for n := 1; n <= 3; n++ {
		m.Reflash()
		m.Insert(m.TPM)
		m.Put(lab.Configuration(t, "BENCH-0019", m.TPM.Trust))
		m.Boot()
		m.Expect(allActive)
		m.PowerOff()
		now := Verify(t, m.TPM, m.Root, lab) // which counts the handles
		if now.IDevID != before.IDevID || now.IDevIDCertificate != before.IDevIDCertificate {
			t.Errorf("reflash %d changed the manufacturer's identity", n)
		}
		if now.LDevID == before.LDevID {
			t.Errorf("reflash %d did not replace the owner's identity, whose authorisation is lost", n)
		}
		if got := lab.Enrolments(t, "ldevid"); got != n+1 {
			t.Errorf("after reflash %d there were %d owner's certificates", n, got)
		}
		before = now
	}
	same(t, "NV indices", indices, listed(m.TPM.Tool(t, "tpm2_getcap", "handles-nv-index")))
	if n := lab.Enrolments(t, "idevid"); n != 1 {
		t.Errorf("%d manufacturer's certificates were made", n)
	}
}

// What systemd itself says of the units, in the machine.
func TestNspawnUnits(t *testing.T) {
	t.Parallel()
	note := scenario(t, "systemd-analyze: exposure of the units, nothing to complain about")
	m := NewMachine(t, "amd64")
	m.Boot()
	var figures []string
	for _, limit := range []struct {
		unit string
		most float64
	}{{idevid, 1.8}, {ldevid, 1.8}, {renewal, 1.8}, {edgecfg, 4.0}} {
		out, _ := m.Try("systemd-analyze", "security", "--no-pager", limit.unit)
		f := regexp.MustCompile(`Overall exposure level for \S+: (\d+\.\d+)`).FindStringSubmatch(out)
		if f == nil {
			t.Fatalf("systemd-analyze says no figure of %s:\n%s", limit.unit, out)
		}
		exposure, err := strconv.ParseFloat(f[1], 64)
		must(t, err)
		if exposure > limit.most {
			t.Errorf("the exposure of %s is %.1f, and may be %.1f:\n%s", limit.unit, exposure, limit.most, out)
		}
		figures = append(figures, fmt.Sprintf("%s %.1f", strings.TrimSuffix(limit.unit, ".service"), exposure))
	}
	note("%s", strings.Join(figures, ", "))
	units, err := filepath.Glob(filepath.Join(m.Root, "usr/lib/systemd/system/tpm2cloud*"))
	must(t, err)
	if len(units) < 6 {
		t.Errorf("the packages have installed %d units: %v", len(units), units)
	}
	for _, unit := range units {
		if strings.HasSuffix(unit, ".d") {
			continue // of drop-ins, which are looked at with their unit
		}
		// The manual pages were left out of this machine.
		if out, code := m.Try("systemd-analyze", "verify", "--man=no", strings.TrimPrefix(unit, m.Root)); code != 0 || out != "" {
			t.Errorf("systemd-analyze verify %s: exit code %d\n%s", filepath.Base(unit), code, out)
		}
	}
	m.PowerOff()
}
