//go:build boot

package boottest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// gatedDevice is a board that is configured for a server which is not there yet.
func gatedDevice(t testing.TB, serial string) (*Machine, *Lab, *Gate) {
	t.Helper()
	lab := NewLab(t)
	gate := lab.Gate(t)
	m := NewMachine(t, "amd64")
	m.Insert(NewTPM(t))
	m.Put(lab.Configuration(t, serial, m.TPM.Trust))
	return m, lab, gate
}

func TestNspawnRetryTimer(t *testing.T) {
	t.Parallel()
	scenario(t, "the retry timer fires three times against a dead EST server, then it works")
	m, lab, gate := gatedDevice(t, "BENCH-0004")
	m.Put(Files{
		"/etc/tpm2cloud/tpm2cloud.toml.d/70-budget.toml":             {Mode: 0o644, Data: "[run]\nbudget = \"1s\"\n"},
		"/etc/systemd/system/tpm2cloud-retry.timer.d/impatient.conf": {Mode: 0o644, Data: "[Timer]\nOnBootSec=\nOnUnitInactiveSec=\nOnBootSec=100ms\nOnUnitInactiveSec=100ms\nRandomizedDelaySec=0\nAccuracySec=1ms\n"},
	})
	m.Boot()
	runs := func() []Entry { return m.Journal("MESSAGE_ID="+gaveUp, "_SYSTEMD_UNIT="+idevid) }
	await(t, 60*time.Second, "the run at the boot and three of the timer gave up", func() bool { return len(runs()) >= 4 })
	invocations := map[string]bool{}
	for _, e := range runs() {
		invocations[e["_SYSTEMD_INVOCATION_ID"]] = true
		if e["TPM2CLOUD_EXIT_CODE"] != "75" {
			t.Errorf("the program gave up with exit code %s", e["TPM2CLOUD_EXIT_CODE"])
		}
	}
	if len(invocations) < 4 {
		t.Errorf("%d runs gave up, and it was one at the boot and three of the timer", len(invocations))
	}
	if n := len(lab.Requests(t)); n != 0 {
		t.Errorf("the server is dead, and was asked %d times", n)
	}
	gate.Open(t, lab)
	await(t, 60*time.Second, "the timer's next run ends well", func() bool { return m.Show(edgecfg)["ActiveState"] == "active" })
	m.Expect(allActive)
	if trigger := m.Show("tpm2cloud-retry.timer"); trigger["ActiveState"] != "active" || trigger["SubState"] != "waiting" && trigger["SubState"] != "running" {
		t.Errorf("the timer does not go on: %s, %s", trigger["ActiveState"], trigger["SubState"])
	}
	m.PowerOff()
	Verify(t, m.TPM, m.Root, lab)
}

func TestNspawnServerLate(t *testing.T) {
	t.Parallel()
	scenario(t, "the network appears late, after several tries in one run")
	m, lab, gate := gatedDevice(t, "BENCH-0005")
	m.PowerOn()
	await(t, 60*time.Second, "three tries have failed", func() bool { return len(m.Journal("MESSAGE_ID="+waiting, "_SYSTEMD_UNIT="+idevid)) >= 3 })
	show := m.Show(idevid)
	if show["ActiveState"] != "activating" || !strings.Contains(show["StatusText"], "again in") {
		t.Errorf("while it waits the unit is %s: %q", show["ActiveState"], show["StatusText"])
	}
	m.Expect(map[string]string{ldevid: "inactive", edgecfg: "inactive"})
	// The boot of the rest must not wait.
	if state := m.Show("multi-user.target")["ActiveState"]; state != "active" {
		t.Errorf("multi-user.target is %s while a server is waited for", state)
	}
	gate.Open(t, lab)
	m.Settle()
	m.Expect(allActive)
	if after := m.Show(idevid); after["InvocationID"] != show["InvocationID"] {
		t.Error("it was another run that succeeded")
	}
	m.PowerOff()
	Verify(t, m.TPM, m.Root, lab)
}

func TestNspawnServerBusy(t *testing.T) {
	t.Parallel()
	scenario(t, "the EST server answers 503 and 202 for a while")
	m, lab := newDevice(t, "amd64", "BENCH-0006")
	lab.Fault(t, `{"label":"idevid","kind":"503","count":2,"retry_after":"1"}`)
	lab.Fault(t, `{"label":"ldevid","kind":"202","count":2,"retry_after":"1"}`)
	m.Boot()
	m.Expect(allActive)
	m.PowerOff()
	for label, kind := range map[string]int{"idevid": http.StatusServiceUnavailable, "ldevid": http.StatusAccepted} {
		var answers []int
		for _, r := range lab.Requests(t) {
			if r.Event == "enrol" && r.Label == label {
				answers = append(answers, r.Status)
			}
		}
		if !slices.Equal(answers, []int{kind, kind, http.StatusOK}) {
			t.Errorf("the answers for %s were %v", label, answers)
		}
	}
	Verify(t, m.TPM, m.Root, lab)
}

// A wrong clock is no scenario here: a container has the clock of the machine
// that it runs on. The tests in QEMU have it, where each board has its own.

func TestNspawnServerRefuses(t *testing.T) {
	t.Parallel()
	scenario(t, "the EST server refuses: exit code 76, told once; a new password, and it works")
	m, lab := newDevice(t, "amd64", "BENCH-0007")
	good := lab.Configuration(t, "BENCH-0007", m.TPM.Trust)["/etc/tpm2cloud/credentials/est-password"]
	m.Put(Files{"/etc/tpm2cloud/credentials/est-password": {Data: "wrong\n", Mode: 0o600}})
	m.Boot()
	m.Expect(map[string]string{target: "active", idevid: "failed 76", ldevid: "inactive", edgecfg: "inactive"})
	says(t, m, idevid, serverRefused, "401")
	refused := 0
	for _, r := range lab.Requests(t) {
		if r.Status == http.StatusUnauthorized {
			refused++
		}
	}
	if refused != 1 {
		t.Errorf("a wrong password was tried %d times", refused)
	}
	m.Put(Files{"/etc/tpm2cloud/credentials/est-password": good})
	m.Run("systemctl", "start", target)
	m.Expect(allActive)
	m.PowerOff()
	Verify(t, m.TPM, m.Root, lab)
}

// In each program, at the moment that loses most.
func TestNspawnPowerCut(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"idevid", "ldevid"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scenario(t, "power cut in tpm2cloud-"+name+", while its certificate is on the way")
			m, lab := newDevice(t, "amd64", "BENCH-0010")
			m.Put(agent())
			lab.Fault(t, fmt.Sprintf(`{"label":%q,"kind":"stall","count":1}`, name))
			m.PowerOn()
			lab.Await(t, 0, "the certificate is asked for", func(r Request) bool { return r.Label == name && r.Fault == "stall" })
			m.Cut()
			recovers(t, m, lab, "bench-0010")
		})
	}
	t.Run("edgecfg", func(t *testing.T) {
		t.Parallel()
		scenario(t, "power cut in tpm2cloud-edgecfg, while the agent's apply runs")
		m, lab := newDevice(t, "amd64", "BENCH-0011")
		m.Put(agent())
		m.Put(Files{"/etc/hold": {Mode: 0o644}})
		m.PowerOn()
		await(t, 60*time.Second, "the apply has begun", func() bool {
			_, err := os.Stat(filepath.Join(m.Root, "etc/aziot/held"))
			return err == nil
		})
		m.Cut()
		must(t, os.Remove(filepath.Join(m.Root, "etc/hold")))
		recovers(t, m, lab, "bench-0011")
	})
}

var seed = flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the drawn instants of power cuts")

func TestNspawnPowerCuts(t *testing.T) {
	t.Parallel()
	note := scenario(t, "power cuts at drawn instants, then a boot to the end")
	m, lab := newDevice(t, "amd64", "BENCH-0012")
	m.Put(agent())
	t.Logf("-seed %d", *seed)
	random := rand.New(rand.NewPCG(*seed, 0))
	var cuts []string
	for range 6 {
		m.PowerOn()
		// A first boot has its steps in this time.
		instant := time.Duration(random.Int64N(int64(1200 * time.Millisecond)))
		time.Sleep(instant)
		m.Cut()
		cuts = append(cuts, fmt.Sprintf("%d", instant.Milliseconds()))
	}
	note("-seed %d: %s ms after systemd's start", *seed, strings.Join(cuts, ", "))
	recovers(t, m, lab, "bench-0012")
}

// recovers demands that the next boot makes all that is missing.
func recovers(t testing.TB, m *Machine, lab *Lab, name string) {
	t.Helper()
	m.Boot()
	m.Expect(allActive)
	m.Expect(map[string]string{consumer: "active"})
	m.Halt()
	if state := m.TPM.Tool(t, "tpm2_getcap", "properties-variable"); !regexp.MustCompile(`TPM2_PT_LOCKOUT_COUNTER: 0x0\b`).MatchString(state) {
		t.Errorf("the TPM counts the power cut as an attack:\n%s", state)
	}
	if handles := m.TPM.Transient(t); len(handles) > 0 {
		t.Errorf("left in the TPM: %v", handles)
	}
	m.TPM.Cut()
	Verify(t, m.TPM, m.Root, lab)
	registered(t, lab, name)
}

func TestNspawnWrongConfiguration(t *testing.T) {
	t.Parallel()
	scenario(t, "wrong configuration, corrected by a drop-in, then the target is started")
	m, lab := newDevice(t, "amd64", "BENCH-0013")
	m.Put(agent())
	m.Put(Files{"/etc/tpm2cloud/tpm2cloud.toml.d/70-wrong.toml": {Mode: 0o644, Data: "[idevid.enroll]\npassword = \"est-pasword\"\n"}})
	m.Boot()
	m.Expect(map[string]string{target: "active", idevid: "failed 78", ldevid: "inactive", edgecfg: "inactive", consumer: "inactive"})
	says(t, m, idevid, cannotGoOn, "70-wrong.toml: line 2", "idevid.enroll.password", "est-pasword")
	if n := len(lab.Requests(t)); n != 0 {
		t.Errorf("%d requests were sent with a wrong configuration", n)
	}
	m.Put(Files{"/etc/tpm2cloud/tpm2cloud.toml.d/80-right.toml": {Mode: 0o644, Data: "[idevid.enroll]\npassword = \"est-password\"\n"}})
	m.Run("systemctl", "start", target)
	m.Expect(allActive)
	m.Run("systemctl", "start", consumer)
	m.PowerOff()
	Verify(t, m.TPM, m.Root, lab)
	registered(t, lab, "bench-0013")
}

func TestNspawnNoTPM(t *testing.T) {
	t.Parallel()
	scenario(t, "no TPM: neither its device nor its socket")
	lab := NewLab(t)
	for _, socket := range []bool{false, true} {
		m := NewMachine(t, "amd64")
		m.Put(lab.Configuration(t, "BENCH-0016", ""))
		object := "/dev/tpmrm0"
		if socket {
			object = "/run/swtpm/tpm.sock"
			m.Put(Files{tpmDropIn: {Data: "[tpm]\ndevice = \"unix:" + object + "\"\n", Mode: 0o644}})
		}
		m.Boot()
		m.Expect(map[string]string{target: "active", idevid: "failed 69", ldevid: "inactive", edgecfg: "inactive"})
		says(t, m, idevid, noTPM, object)
		if !socket {
			says(t, m, idevid, noTPM, "dtoverlay=tpm-slb9670")
		}
		if text := m.Run("journalctl", "-x", "--no-pager", "-u", idevid); !strings.Contains(text, "On a Raspberry Pi, add") {
			t.Errorf("journalctl -x does not say what to do:\n%s", text)
		}
		m.PowerOff()
	}
	if n := len(lab.Requests(t)); n != 0 {
		t.Errorf("%d requests were sent without a TPM", n)
	}
}

func TestNspawnDiskFull(t *testing.T) {
	t.Parallel()
	note := scenario(t, "disk full during the first boot; with each page that is freed it goes on")
	m, lab := newDevice(t, "amd64", "BENCH-0020")
	m.Put(Files{"/etc/tpm2cloud/tpm2cloud.toml.d/70-budget.toml": {Mode: 0o644, Data: "[run]\nbudget = \"1s\"\n"}})
	// Its own small file system: a page is 4 KiB.
	state := filepath.Join(m.Root, "var/lib/tpm2cloud")
	must(t, syscall.Mount("tmpfs", state, "tmpfs", 0, "size=1M,mode=0755"))
	t.Cleanup(func() { syscall.Unmount(state, syscall.MNT_DETACH) })
	ballast := filepath.Join(state, "ballast")
	must(t, os.WriteFile(ballast, make([]byte, 1<<20), 0o600))
	m.Boot()
	failures := map[string]int{}
	for size := int64(1 << 20); ; size -= 8 << 10 {
		if m.Show(edgecfg)["ActiveState"] == "active" {
			break
		}
		if size <= 0 {
			t.Fatalf("the programs do not end well, although there is room: %s; %s", m.Show(ldevid)["StatusText"], m.Show(edgecfg)["StatusText"])
		}
		for _, unit := range []string{idevid, ldevid, edgecfg} {
			if show := m.Show(unit); show["ActiveState"] == "failed" {
				failures[unit]++
				if !strings.Contains(show["StatusText"], "no space left on device") {
					t.Fatalf("%s does not say that the disk is full: %s", unit, show["StatusText"])
				}
			}
		}
		must(t, os.Truncate(ballast, size))
		m.Run("systemctl", "start", target)
	}
	note("failed for want of room: idevid %d times, ldevid %d, edgecfg %d", failures[idevid], failures[ldevid], failures[edgecfg])
	if failures[idevid] == 0 || failures[ldevid] == 0 {
		t.Errorf("the disk was not full: %v", failures)
	}
	m.PowerOff()
	Verify(t, m.TPM, m.Root, lab)
	for _, label := range []string{"idevid", "ldevid"} {
		if n := lab.Enrolments(t, label); n != 1 {
			t.Logf("%d certificates were made for %s", n, label)
		}
	}
}

// holder is a program that has opened the token as the agent's key service does, and its user: it
// has signed once, and then keeps the store open. What it reads of it, it has read by then.
var holder = Files{"/etc/systemd/system/holder.service": {Mode: 0o644, Data: `[Unit]
After=tpm2cloud-ldevid.service
[Service]
ExecStart=/bin/sh -c 'exec tpm2cloud-lab use --uri-file /run/uri --pause 1h --module /usr/lib/*/pkcs11/libtpm2_pkcs11.so'
User=aziotks
SupplementaryGroups=tss tpm2cloud-token
UMask=0007
Environment=TPM2_PKCS11_STORE=/var/lib/tpm2cloud/pkcs11 TPM2_PKCS11_TCTI=swtpm:path=/run/swtpm/tpm.sock
`}}

func TestNspawnTokenHeld(t *testing.T) {
	t.Parallel()
	scenario(t, "the LDevID is made again while the agent's key service holds the token's store")
	m, lab := newDevice(t, "amd64", "BENCH-0021")
	m.Put(agent())
	m.Put(holder)
	m.Boot()
	m.Expect(allActive)
	m.Expect(map[string]string{consumer: "active", "aziot-keyd.service": "active"})
	hold := func(times int) {
		m.Run("systemctl", "restart", "holder.service")
		await(t, 60*time.Second, "the holder has signed", func() bool {
			n := 0
			for _, e := range m.Journal("_SYSTEMD_UNIT=holder.service") {
				if strings.HasPrefix(e["MESSAGE"], "in use: ") {
					n++
				}
			}
			return n == times
		})
	}
	m.Run("sh", "-c", `umask 077; printf 'pkcs11:token=edge;object=ldevid?pin-value=%s' "$(cat /var/lib/tpm2cloud/pins/user-pin)" >/run/uri; chown aziotks /run/uri`)
	hold(1)
	store := filepath.Join(m.Root, "var/lib/tpm2cloud/pkcs11/tpm2_pkcs11.sqlite3")
	key := m.TPM.Key(t, ldevidHandle)
	// Somebody removes it from the token (its label, in hex) and the TPM.
	command(t, nil, "sqlite3", store, `DELETE FROM tobjects WHERE attrs LIKE '%"6c6465766964"%'`)
	m.TPM.Tool(t, "tpm2_evictcontrol", "-Q", "-C", "o", "-c", ldevidHandle)
	keyd := m.Show("aziot-keyd.service")["InvocationID"]
	m.Run("systemctl", "restart", ldevid)
	m.Run("systemctl", "start", target)
	m.Expect(allActive)
	m.Expect(map[string]string{"holder.service": "active", "aziot-keyd.service": "active"})
	if m.TPM.Key(t, ldevidHandle) == key {
		t.Error("there is no new key")
	}
	// What it knows is old until somebody restarts it; for keyd, the apply does.
	if m.Show("aziot-keyd.service")["InvocationID"] == keyd {
		t.Error("keyd goes on with what it knew of the store")
	}
	hold(2)
	if sound := strings.TrimSpace(command(t, nil, "sqlite3", store, "PRAGMA integrity_check")); sound != "ok" {
		t.Errorf("the store is not whole: %s", sound)
	}
	if n := lab.Enrolments(t, "ldevid"); n != 2 {
		t.Errorf("%d owner's certificates were made", n)
	}
	m.Run("systemctl", "restart", consumer)
	m.PowerOff()
	Verify(t, m.TPM, m.Root, lab)
	registered(t, lab, "bench-0021")
}
