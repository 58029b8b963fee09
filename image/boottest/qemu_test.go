//go:build boot

package boottest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Each scenario is a machine with a kernel and a TPM of its own, made by QEMU, whose disk is a copy
// of a golden image. A machine reports and powers off; then its disk and its TPM are read.
func TestQEMU(t *testing.T) {
	for _, s := range []struct {
		name, what string
		run        func(*qemuScenario, *testing.T)
	}{
		{"amd64-crb", "first boot, TPM by CRB; the agent registers", qemuFirstBoot("bookworm", "amd64", "qboot", "tpm-crb")},
		{"amd64-tis", "TPM by TIS; a second boot changes nothing", (*qemuScenario).secondBoot},
		{"amd64-closed", "firmware closed the platform: an error, then its hint", (*qemuScenario).platformClosed},
		{"amd64-factory", "IDevID made at the factory, platform closed", (*qemuScenario).factory},
		{"amd64-uefi", "UEFI boots the disk by its own loader", (*qemuScenario).uefi},
		{"amd64-cuts", "power cut in idevid, then in ldevid, then done", (*qemuScenario).powerCuts},
		{"amd64-drawn-cuts", "power cuts at drawn instants of the first boot, then done", (*qemuScenario).drawnCuts},
		{"amd64-clock-1970", "no clock: it waits for the time", qemuWrongClock(func(*testing.T) string { return "1970-01-01T00:00:00" })},
		{"amd64-clock-build", "a clock that stands at the build's date", qemuWrongClock(built)},
		{"amd64-trixie", "the same on Debian 13", qemuFirstBoot("trixie", "amd64", "qboot", "tpm-crb")},
		{"armhf", "first boot, programs of armhf; the agent registers", qemuFirstBoot("bookworm", "armhf", "", "tpm-tis-device")},
		{"arm64", "first boot; the agent registers", qemuFirstBoot("bookworm", "arm64", "", "tpm-tis-device")},
	} {
		t.Run(s.name, func(t *testing.T) {
			note := scenario(t, "QEMU "+s.name+": "+s.what)
			q := new(qemuScenario)
			defer func() {
				note("boots %s s; programs %s guest s", strings.Join(q.boots, ", "), strings.Join(q.programs, ", "))
			}()
			s.run(q, t)
		})
	}
}

// qemuScenario collects figures for the table of verdicts.
type qemuScenario struct{ boots, programs []string }

// boot boots, and demands that all three programs end well.
func (q *qemuScenario) boot(t *testing.T, b *qemuBoard) *qemuReport {
	t.Helper()
	r := q.bootAnyhow(t, b)
	for _, name := range []string{"idevid", "ldevid", "edgecfg"} {
		unit := r.units["tpm2cloud-"+name+".service"]
		if unit["ActiveState"] != "active" || unit["Result"] != "success" {
			t.Errorf("tpm2cloud-%s: %s, %s", name, unit["ActiveState"], unit["Result"])
		}
		if len(Journal(t, r.root, "-b", "MESSAGE_ID="+ready, "_SYSTEMD_UNIT=tpm2cloud-"+name+".service")) != 1 {
			t.Errorf("the journal has not one entry that tpm2cloud-%s is ready", name)
		}
	}
	if failed := Journal(t, r.root, "-b", "MESSAGE_ID="+unitFailed); len(failed) != 0 {
		t.Errorf("units failed: %v", failed)
	}
	if !strings.Contains(r.machine, "/dev/tpmrm0 tss:tss 660\n") {
		t.Errorf("the TPM's device is not what it must be:\n%s", r.machine)
	}
	if t.Failed() {
		t.Fatalf("the journal says:\n%s", read(t, b.file("journal.txt")))
	}
	figure := fmt.Sprintf("%.2f", r.programs(t).Seconds())
	if r.busy {
		figure += " (host busy)"
	}
	q.programs = append(q.programs, figure)
	b.disk.check(t)
	return r
}

func (q *qemuScenario) bootAnyhow(t *testing.T, b *qemuBoard) *qemuReport {
	t.Helper()
	r := b.boot(t)
	q.boots = append(q.boots, fmt.Sprintf("%.0f", r.took.Seconds()))
	return r
}

// qemuLimit is for our three programs together on Debian 12, in the guest's time, when they make everything. A
// host that is busy with something else is not judged by it.
const qemuLimit = 5 * time.Second

func qemuFirstBoot(release, arch, firmware, tpmType string) func(*qemuScenario, *testing.T) {
	return func(q *qemuScenario, t *testing.T) {
		lab := newQEMULab(t)
		b := newQEMUBoard(t, lab, release, arch, firmware, tpmType)
		hub, err := url.Parse(lab.About["hub_url"])
		must(t, err)
		b.disk.put(t, Files{"/etc/boottest/hub": {Data: hub.Port() + "\n", Mode: 0o644}})
		r := q.boot(t, b)
		ids := Verify(t, b.tpm, r.root, lab)
		b.transcript(t)
		if !slices.Contains(lines(r.machine), arch) {
			t.Errorf("the machine is not of %s:\n%s", arch, r.machine)
		}
		if ids.LDevName != strings.ToLower(b.serial) {
			t.Errorf("the LDevID is %s, and the board's serial number is %s", ids.LDevName, b.serial)
		}
		if !strings.HasSuffix(r.agent, "\nexit code 0\n") || !slices.ContainsFunc(lab.Requests(t), func(r Request) bool {
			return r.Event == "registration" && r.ID == strings.ToLower(b.serial)
		}) {
			t.Errorf("the agent did not register:\n%s", r.agent)
		}
		tamper(t, b)
		if arch == "amd64" && release == "bookworm" && r.programs(t) > qemuLimit && !r.busy {
			t.Errorf("from network-online.target to tpm2cloud.target: %s of guest time, more than %s", r.programs(t), qemuLimit)
		}
	}
}

// tamper tries what somebody with the device's TPM would, on a copy that has just got power: all
// that holds by then is permanent in it.
func tamper(t *testing.T, b *qemuBoard) {
	t.Helper()
	tpm := b.tpm.Fork(t)
	tpm.Refuses(t, "tpm2_nvundefine", "-C", "o", idevidIndex)
	tpm.Refuses(t, "tpm2_clear", "-c", "l")
}

func (q *qemuScenario) secondBoot(t *testing.T) {
	lab := newQEMULab(t)
	b := newQEMUBoard(t, lab, "bookworm", "amd64", "qboot", "tpm-tis")
	look := func() (state, asked []string) {
		r := q.boot(t, b)
		state = Tree(t, r.root, "/var/lib/tpm2cloud", "/etc/tpm2cloud", "/etc/aziot", "/etc/machine-id")
		state = append(state, fmt.Sprint(Verify(t, b.tpm, r.root, lab)))
		state = append(state, b.tpm.Handles(t)...)
		state = append(state, lines(b.tpm.Tool(t, "tpm2_nvreadpublic"))...)
		for _, request := range lab.Requests(t) {
			asked = append(asked, fmt.Sprint(request))
		}
		return state, asked
	}
	state, asked := look()
	b.transcript(t)
	again, askedAgain := look()
	same(t, "the state of the device", state, again)
	same(t, "what the lab was asked", asked, askedAgain)
}

func (q *qemuScenario) platformClosed(t *testing.T) {
	lab := newQEMULab(t)
	b := newQEMUBoard(t, lab, "bookworm", "amd64", "seabios", "tpm-tis")
	r := q.bootAnyhow(t, b)
	if unit := r.units["tpm2cloud-idevid.service"]; unit["Result"] != "exit-code" || unit["ExecMainStatus"] != "65" {
		t.Errorf("tpm2cloud-idevid did not refuse: %v", unit)
	}
	for _, name := range []string{"ldevid", "edgecfg"} {
		if unit := r.units["tpm2cloud-"+name+".service"]; unit["ActiveState"] != "inactive" {
			t.Errorf("tpm2cloud-%s ran without what it needs: %v", name, unit)
		}
	}
	said := Journal(t, r.root, "-b", "MESSAGE_ID="+cannotGoOn)
	if len(said) != 1 || !strings.Contains(fmt.Sprint(said), `storage = "owner"`) {
		t.Errorf("the journal does not say once what to do: %v\n%s", said, read(t, b.file("journal.txt")))
	}
	if indices := b.tpm.Tool(t, "tpm2_getcap", "handles-nv-index"); slices.Contains(listed(indices), idevidIndex) {
		t.Errorf("the index of the IDevID certificate is there:\n%s", indices)
	}

	b.configure(t, "80-storage", "[idevid]\nstorage = \"owner\"\n")
	r = q.boot(t, b)
	Verify(t, b.tpm, r.root, lab)
}

func (q *qemuScenario) factory(t *testing.T) {
	lab := newQEMULab(t)
	b := newQEMUBoard(t, lab, "bookworm", "amd64", "seabios", "tpm-crb")
	// At the factory the same configuration serves, but for the way to the TPM.
	bench := scratch("bench")
	put(t, bench, lab.Configuration(t, b.serial, b.tpm.Trust))
	put(t, bench, Files{
		"/etc/tpm2cloud/tpm2cloud.toml":                 {Data: read(t, filepath.Join(top, "debian/tpm2cloud.toml")), Mode: 0o644},
		"/etc/tpm2cloud/tpm2cloud.toml.d/70-bench.toml": {Data: "[tpm]\ndevice = \"unix:/run/tpm.sock\"\n\n[idevid.enroll]\nserver = \"" + lab.address(t, "est_url", "127.0.0.1") + "\"\n", Mode: 0o644},
		"/run/tpm.sock": {Link: b.tpm.Socket},
	})
	b.tpm.On(t)
	command(t, nil, filepath.Join(top, "build/bin/tpm2cloud-idevid"), "--root", bench)
	certificate := b.tpm.NV(t, idevidIndex)
	b.tpm.Cut()

	r := q.boot(t, b)
	Verify(t, b.tpm, r.root, lab)
	if n := lab.Enrolments(t, "idevid"); n != 1 {
		t.Errorf("%d IDevID certificates were given, and the factory's was one", n)
	}
	if b.tpm.NV(t, idevidIndex) != certificate {
		t.Error("the IDevID certificate is not the factory's")
	}
}

func (q *qemuScenario) uefi(t *testing.T) {
	lab := newQEMULab(t)
	b := newQEMUBoard(t, lab, "bookworm", "amd64", "ovmf", "tpm-tis")
	// OVMF closes the platform.
	b.configure(t, "80-storage", "[idevid]\nstorage = \"owner\"\n")
	r := q.boot(t, b)
	Verify(t, b.tpm, r.root, lab)
}

// powerCuts takes the power as soon as the CA has given a certificate: that is when the program
// stores it.
func (q *qemuScenario) powerCuts(t *testing.T) {
	lab := newQEMULab(t)
	b := newQEMUBoard(t, lab, "bookworm", "amd64", "qboot", "tpm-crb")
	for _, label := range []string{"idevid", "ldevid"} {
		before := lab.Enrolments(t, label)
		r := b.powerOn(t)
		await(t, qemuPatience, "a certificate of "+label, func() bool { return lab.Enrolments(t, label) > before })
		r.cut()
	}
	r := q.boot(t, b)
	Verify(t, b.tpm, r.root, lab)
	tamper(t, b)
}

var qemuCuts = flag.Int("cuts", 2, "`number` of power cuts at drawn instants, in QEMU")

// qemuWindow is what a first boot has its programs in, as a part of the time that it took until the first of them:
// 8 s after 20 s on two idle cores, and more of both on busy ones.
const qemuWindow = 0.4

// qemuBegin says on the console that the programs begin: before that, a boot has nothing of ours to lose.
var qemuBegin = Files{
	"/etc/systemd/system/begins.service": {Mode: 0o644, Data: `[Unit]
After=dev-tpmrm0.device network-online.target
Before=tpm2cloud-idevid.service

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo tpm2cloud begins >/dev/console'
`},
	"/etc/systemd/system/multi-user.target.wants/begins.service": {Link: "/etc/systemd/system/begins.service"},
}

// drawnCuts takes the power at instants that are drawn from the seed. Half of the boards suffer another cut in
// the boot that follows, half of these a third one; then the board boots to the end. What the kernel had not
// given to the disk is lost with it.
func (q *qemuScenario) drawnCuts(t *testing.T) {
	t.Logf("-seed %d -cuts %d", *seed, *qemuCuts)
	random := rand.New(rand.NewPCG(*seed, 0))
	lab := newQEMULab(t)
	for cuts, board := 0, 1; cuts < *qemuCuts; board++ {
		good := t.Run(fmt.Sprint(board), func(t *testing.T) {
			b := newQEMUBoard(t, lab, "bookworm", "amd64", "qboot", "tpm-crb")
			b.disk.put(t, qemuBegin)
			var instants []string
			for again := true; again && cuts < *qemuCuts; again = random.IntN(2) == 0 {
				begun := time.Now()
				r := b.powerOn(t)
				await(t, qemuPatience, "the programs begin", func() bool {
					if data, err := os.ReadFile(b.file("serial.log")); err == nil {
						return strings.Contains(string(data), "tpm2cloud begins")
					}
					return false
				})
				instant := time.Duration(random.Float64() * qemuWindow * float64(time.Since(begun)))
				select {
				case <-time.After(instant):
				case err := <-r.ended: // all was done, and it powered off
					r.ended <- err
				}
				r.cut()
				cuts++
				instants = append(instants, fmt.Sprintf("%.2f s, %d certificates", instant.Seconds(), lab.Enrolments(t, "idevid")+lab.Enrolments(t, "ldevid")))
			}
			t.Logf("-seed %d: cut after %s", *seed, strings.Join(instants, "; "))
			r := q.boot(t, b)
			Verify(t, b.tpm, r.root, lab)
			tamper(t, b)
		})
		if !good {
			return
		}
	}
}

// transcript writes what one sees of the latest boot, and of the TPM after it.
func (b *qemuBoard) transcript(t *testing.T) {
	t.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, "$ %s\n\n$ journalctl -b -x -o short-monotonic -u 'tpm2cloud*'\n%s\nThe machine is off; on the state of its TPM:\n",
		strings.Join(b.machine(), " "), read(t, b.file("journal.txt")))
	for _, line := range [][]string{{"tpm2_getcap", "handles-persistent"}, {"tpm2_nvreadpublic"}} {
		fmt.Fprintf(&text, "\n$ %s\n%s", strings.Join(line, " "), b.tpm.Tool(t, line[0], line[1:]...))
	}
	must(t, os.WriteFile(filepath.Join(b.dir, "transcript.txt"), []byte(strings.ReplaceAll(text.String(), b.dir+"/", "")), 0o644))
}

// synchroniser stands for a time server: it sets the clock as soon as the first program says what it
// waits for, and notes what the clock said until then.
const synchroniser = `dir=` + qemuReports + `
mkdir -p "$dir"
until systemctl show -p StatusText tpm2cloud-idevid.service | grep -q 'is not valid before .*again in'; do
	! systemctl is-active --quiet tpm2cloud-idevid.service || exit 1
	sleep 0.2
done
date -u +%FT%T >"$dir/clock"
# The time at power on, and what has passed since.
date -u -s "@$(($(cat /etc/boottest/time) + $(cut -d. -f1 /proc/uptime)))"
`

// qemuWrongClock boots with a clock that nobody has set. Every certificate of this world, the TPM's
// own first, is younger than it: the programs wait for the time, and then do all in the same run.
func qemuWrongClock(clock func(*testing.T) string) func(*qemuScenario, *testing.T) {
	return func(q *qemuScenario, t *testing.T) {
		lab := newQEMULab(t)
		b := newQEMUBoard(t, lab, "bookworm", "amd64", "qboot", "tpm-crb")
		b.clock = clock(t)
		b.disk.put(t, Files{
			"/etc/boottest/time": {Data: fmt.Sprintf("%d\n", time.Now().Unix()), Mode: 0o644},
			"/etc/boottest/sync": {Data: synchroniser, Mode: 0o644},
			"/etc/systemd/system/synchroniser.service": {Mode: 0o644, Data: `[Service]
Type=exec
ExecStart=/bin/sh /etc/boottest/sync
`},
			"/etc/systemd/system/multi-user.target.wants/synchroniser.service": {Link: "/etc/systemd/system/synchroniser.service"},
		})
		r := q.boot(t, b)
		ids := Verify(t, b.tpm, r.root, lab)
		if ids.LDevName != strings.ToLower(b.serial) {
			t.Errorf("the LDevID is %s", ids.LDevName)
		}
		if waited := Journal(t, r.root, "-b", "MESSAGE_ID="+waiting, "_SYSTEMD_UNIT=tpm2cloud-idevid.service"); len(waited) == 0 {
			t.Errorf("the journal does not say that it waited:\n%s", read(t, b.file("journal.txt")))
		}
		said, err := time.Parse("2006-01-02T15:04:05", strings.TrimSpace(read(t, filepath.Join(r.root, qemuReports, "clock"))))
		must(t, err)
		leaf := read(t, filepath.Join(r.root, "var/lib/tpm2cloud/ldevid/certificate.pem"))
		if begin := notBefore(t, leaf); !said.Before(begin) {
			t.Errorf("the clock was not wrong: it stood at %s, and the LDevID begins at %s", said, begin)
		}
	}
}

// built is the date of the programs, in UTC.
func built(t *testing.T) string {
	seconds, err := strconv.ParseInt(strings.TrimSpace(command(t, nil, "dpkg-parsechangelog", "-l", filepath.Join(top, "debian/changelog"), "-S", "Timestamp")), 10, 64)
	must(t, err)
	return time.Unix(seconds, 0).UTC().Format("2006-01-02T15:04:05")
}

// notBefore is when the first certificate of a PEM file begins, as openssl says it.
func notBefore(t *testing.T, certificate string) time.Time {
	t.Helper()
	file := filepath.Join(scratch("certificate"), "certificate.pem")
	must(t, os.WriteFile(file, []byte(certificate), 0o644))
	_, date, _ := strings.Cut(strings.TrimSpace(command(t, nil, "openssl", "x509", "-noout", "-startdate", "-in", file)), "=")
	begin, err := time.Parse("Jan _2 15:04:05 2006 MST", date)
	must(t, err)
	return begin
}
