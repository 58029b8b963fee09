//go:build boot

package boottest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A boot takes 20 to 60 s on two idle cores. It is given more than any has needed on busy ones.
const qemuPatience = 6 * time.Minute

// qemuBoard is a machine with a TPM and a disk of its own, which outlive its boots. Whether the
// platform hierarchy of its TPM is open is the firmware's choice: qboot leaves it so, as boards
// without a firmware do; SeaBIOS and OVMF close it.
type qemuBoard struct {
	arch     string // of the image
	firmware string // "qboot", "seabios", "ovmf", or "" for none
	tpmType  string // QEMU's device
	serial   string
	dir      string
	tpm      *TPM
	lab      *Lab
	disk     qemuDisk
	kernel   string
	cmdline  string
	clock    string // what its clock says at power on, if not the time
	boots    int
}

// newQEMUBoard makes a board, with a copy of the golden image that is configured for a lab.
func newQEMUBoard(t *testing.T, lab *Lab, release, arch, firmware, tpmType string) *qemuBoard {
	t.Helper()
	image := goldenImage(t, release, arch)
	name := strings.ReplaceAll(strings.TrimPrefix(t.Name(), "TestQEMU/"), "/", "-")
	b := &qemuBoard{
		arch: arch, firmware: firmware, tpmType: tpmType, lab: lab, tpm: NewTPM(t), serial: "QEMU-" + strings.ToUpper(name),
		dir: filepath.Join(top, "build/test-boot", name), kernel: image + ".vmlinuz",
	}
	must(t, os.RemoveAll(b.dir))
	must(t, os.MkdirAll(b.dir, 0o755))
	b.disk = qemuDisk{file: filepath.Join(b.dir, "disk.img")}
	command(t, nil, "cp", "--sparse=always", image, b.disk.file)
	t.Cleanup(func() {
		// What it had to say is beside it.
		if !t.Failed() {
			_ = os.Remove(b.disk.file)
		}
	})
	// A panic ends the machine, and not the patience of the test; mitigations take a tenth of the time.
	b.cmdline = strings.TrimSpace(read(t, image+".cmdline")) + " panic=-1 mitigations=off"

	b.disk.put(t, lab.Configuration(t, b.serial, b.tpm.Trust))
	b.disk.put(t, qemuReporter)
	return b
}

// configure adds a drop-in.
func (b *qemuBoard) configure(t *testing.T, name, toml string) {
	t.Helper()
	b.disk.put(t, Files{"/etc/tpm2cloud/tpm2cloud.toml.d/" + name + ".toml": {Data: toml, Mode: 0o644}})
}

// goldenImage is the image of a release and an architecture, made by image/build unless the one that is there
// was made of the same files.
func goldenImage(t *testing.T, release, arch string) string {
	t.Helper()
	file := filepath.Join(top, "build/test-boot", "golden-"+release+"-"+arch+".img")
	args := []string{"--release", release, "--arch", arch, "--output", file}
	sum := sha256.New()
	for _, deb := range packages(t, arch) {
		args = append(args, "--deb", deb)
		fmt.Fprintf(sum, "%x\n", sha256.Sum256([]byte(read(t, deb))))
	}
	for _, part := range []string{"image/build", "image/packages", "image/10-image.toml"} {
		fmt.Fprintf(sum, "%x\n", sha256.Sum256([]byte(read(t, filepath.Join(top, part)))))
	}
	key := fmt.Sprintf("%x\n", sum.Sum(nil))
	if before, err := os.ReadFile(file + ".key"); err == nil && string(before) == key {
		if _, err := os.Stat(file); err == nil {
			return file
		}
	}
	must(t, os.RemoveAll(file+".key"))
	command(t, nil, filepath.Join(top, "image/build"), args...)
	must(t, os.WriteFile(file+".key", []byte(key), 0o644))
	return file
}

// machine is QEMU's command line. It never uses KVM, which may be there and not work.
func (b *qemuBoard) machine() []string {
	pc := []string{"-smbios", "type=1,manufacturer=QEMU,product=Board,serial=" + b.serial}
	direct := []string{"-kernel", b.kernel, "-append", b.cmdline}
	var args []string
	switch b.firmware {
	case "qboot":
		args = append(append([]string{"qemu-system-x86_64", "-bios", "/usr/share/qemu/qboot.rom"}, pc...), direct...)
	case "seabios":
		args = append(append([]string{"qemu-system-x86_64"}, pc...), direct...)
	case "ovmf":
		// The disk's own loader, kernel and command line.
		args = append([]string{"qemu-system-x86_64", "-machine", "q35",
			"-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
			"-drive", "if=pflash,format=raw,file=" + filepath.Join(b.dir, "vars.fd")}, pc...)
	default:
		args = append([]string{"qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a53"}, direct...)
	}
	if b.clock != "" {
		args = append(args, "-rtc", "base="+b.clock)
	}
	return append(args,
		"-accel", "tcg,thread=multi", "-smp", "2", "-m", "1024", "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "file:"+b.file("serial.log"),
		"-drive", "if=none,id=disk,format=raw,cache=unsafe,file="+b.disk.file, "-device", "nvme,drive=disk,serial=disk",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net",
		"-chardev", "socket,id=tpm,path="+b.control(), "-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", b.tpmType+",tpmdev=tpm")
}

// file is a file of the evidence of the latest boot.
func (b *qemuBoard) file(name string) string {
	return filepath.Join(b.dir, fmt.Sprintf("boot-%d-%s", b.boots, name))
}

// control is the socket by which QEMU has the TPM. Beside it, while the machine is off, is the one
// for tpm2-tools.
func (b *qemuBoard) control() string { return b.tpm.Socket + ".qemu" }

// A qemuRun is a machine that is switched on.
type qemuRun struct {
	board     *qemuBoard
	qemu, tpm *exec.Cmd
	ended     chan error
}

func (b *qemuBoard) powerOn(t *testing.T) *qemuRun {
	t.Helper()
	b.boots++
	if b.firmware == "ovmf" {
		command(t, nil, "cp", "/usr/share/OVMF/OVMF_VARS_4M.fd", filepath.Join(b.dir, "vars.fd"))
	}
	b.tpm.Cut()
	_ = os.Remove(b.control())
	r := &qemuRun{board: b, ended: make(chan error, 1)}
	// With --terminate it ends when QEMU has.
	r.tpm = b.start(t, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+b.tpm.State, "--ctrl", "type=unixio,path="+b.control(),
		"--flags", "startup-clear", "--terminate")
	await(t, 10*time.Second, "swtpm listens", func() bool {
		_, err := os.Stat(b.control())
		return err == nil
	})
	machine := b.machine()
	r.qemu = b.start(t, machine[0], machine[1:]...)
	go func() { r.ended <- r.qemu.Wait() }()
	t.Cleanup(func() {
		_ = r.qemu.Process.Kill()
		_ = r.tpm.Process.Kill()
	})
	return r
}

func (b *qemuBoard) start(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	log, err := os.Create(b.file(name + ".log"))
	must(t, err)
	defer log.Close()
	c := exec.Command(name, args...)
	c.Stdout, c.Stderr = log, log
	must(t, c.Start())
	return c
}

// boot lets the machine start, report and power off.
func (b *qemuBoard) boot(t *testing.T) *qemuReport {
	t.Helper()
	begun, before := time.Now(), hostBusy(t)
	r := b.powerOn(t)
	select {
	case err := <-r.ended:
		if err != nil {
			t.Fatalf("QEMU: %v\n%s", err, b.said(r.qemu.Args[0]+".log"))
		}
	case <-time.After(qemuPatience):
		_ = r.qemu.Process.Kill()
		t.Fatalf("boot %d has not ended after %s; its console said last:\n%s", b.boots, qemuPatience, b.said("serial.log"))
	}
	// Its state is written when it ends.
	_ = r.tpm.Wait()
	took := time.Since(begun)
	others := hostBusy(t) - before - cpuTime(r.qemu) - cpuTime(r.tpm)
	report := b.report(t)
	report.took = took
	// The guest's clock is the host's, so that its figures count only where it had the processors.
	report.busy = others > took/10
	return report
}

// hostBusy is the time that all processors of this machine have worked.
func hostBusy(t *testing.T) time.Duration {
	t.Helper()
	fields := strings.Fields(lines(read(t, "/proc/stat"))[0])
	var ticks int64
	for i, field := range fields[1:min(9, len(fields))] {
		n, err := strconv.ParseInt(field, 10, 64)
		must(t, err)
		if i != 3 && i != 4 { // idle, and waiting for a disk
			ticks += n
		}
	}
	return time.Duration(ticks) * (time.Second / 100)
}

func cpuTime(c *exec.Cmd) time.Duration {
	return c.ProcessState.UserTime() + c.ProcessState.SystemTime()
}

// cut takes the power away from machine and TPM, whatever they are doing.
func (r *qemuRun) cut() {
	_ = r.tpm.Process.Kill()
	_ = r.qemu.Process.Kill()
	_ = r.tpm.Wait()
	<-r.ended
}

// said is the end of a log of the latest boot.
func (b *qemuBoard) said(name string) string {
	data, err := os.ReadFile(b.file(name))
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-4000):])
}

// A qemuReport is what a boot has left.
type qemuReport struct {
	root    string // copies of folders of the disk
	units   map[string]map[string]string
	agent   string // what the stand-in of the agent said
	machine string
	took    time.Duration
	busy    bool // the host did much else meanwhile
}

// qemuReports is a folder on the disk: one below it for each boot, with what only a running machine
// knows. All the rest is read from the disk afterwards.
const qemuReports = "/var/lib/boottest"

var qemuReporter = Files{
	"/etc/systemd/system/boottest.service": {Mode: 0o644, Data: `[Unit]
Description=Report of the boot test
After=tpm2cloud.target network-online.target

[Service]
Type=oneshot
ExecStart=/bin/sh /etc/boottest/report
ExecStopPost=/usr/bin/systemctl --no-block poweroff
TimeoutStartSec=5min
`},
	"/etc/systemd/system/multi-user.target.wants/boottest.service": {Link: "/etc/systemd/system/boottest.service"},
	// The clock is QEMU's, which is right; no server outside of this machine is asked for the time.
	"/etc/systemd/timesyncd.conf.d/50-boottest.conf": {Mode: 0o644, Data: "[Time]\nNTP=\nFallbackNTP=\n"},
	"/etc/boottest/report": {Mode: 0o644, Data: `dir=` + qemuReports + `/$(cat /proc/sys/kernel/random/boot_id)
mkdir -p "$dir"
systemctl show -p Id,ActiveState,Result,ExecMainStatus,ActiveEnterTimestampMonotonic,ExecMainStartTimestampMonotonic,ExecMainExitTimestampMonotonic \
	network-online.target tpm2cloud.target tpm2cloud-idevid.service tpm2cloud-ldevid.service tpm2cloud-edgecfg.service >"$dir/units"
{
	uname -srm
	dpkg --print-architecture
	stat -c '%n %U:%G %a' /dev/tpmrm0
} >"$dir/machine" 2>&1
if [ -e /etc/boottest/hub ]; then
	# DPS names the hub by its address on the host.
	port=$(cat /etc/boottest/hub)
	systemd-socket-activate -l "127.0.0.1:$port" /lib/systemd/systemd-socket-proxyd "` + qemuHost + `:$port" &
	{
		tpm2cloud-lab agent --config /etc/aziot/config.toml --state ` + qemuReports + `/aziot \
			--dropin /etc/systemd/system/aziot-keyd.service.d/50-tpm2cloud.conf --system-ca /etc/tpm2cloud/server-ca.pem --poll 100ms
		echo "exit code $?"
	} >"$dir/agent" 2>&1
fi
journalctl --sync
journalctl -b -x --no-pager -o short-monotonic -u 'tpm2cloud*' >"$dir/journal"
sync
`},
}

// report reads what the latest boot has left on the disk. Without a report the machine did not come
// that far.
func (b *qemuBoard) report(t *testing.T) *qemuReport {
	t.Helper()
	r := &qemuReport{root: filepath.Join(b.dir, fmt.Sprintf("boot-%d", b.boots)), units: make(map[string]map[string]string)}
	b.disk.copyOut(t, r.root, qemuReports, "/var/lib/tpm2cloud", "/var/log/journal", "/etc/tpm2cloud", "/etc/aziot", "/etc/machine-id")
	boots, err := filepath.Glob(filepath.Join(r.root, qemuReports, "*/units"))
	must(t, err)
	if len(boots) != 1 {
		t.Fatalf("boot %d left %d reports; its console said last:\n%s", b.boots, len(boots), b.said("serial.log"))
	}
	for block := range strings.SplitSeq(read(t, boots[0]), "\n\n") {
		unit := make(map[string]string)
		for _, line := range lines(block) {
			key, value, _ := strings.Cut(line, "=")
			unit[key] = value
		}
		r.units[unit["Id"]] = unit
	}
	dir := filepath.Dir(boots[0])
	r.machine = read(t, filepath.Join(dir, "machine"))
	if agent, err := os.ReadFile(filepath.Join(dir, "agent")); err == nil {
		r.agent = string(agent)
	}
	must(t, os.WriteFile(b.file("journal.txt"), []byte(read(t, filepath.Join(dir, "journal"))), 0o644))
	// The next boot's shall be alone there.
	b.disk.empty(t, qemuReports)
	return r
}

// at is one of systemd's times of a unit, in the guest's time since its boot.
func (r *qemuReport) at(t *testing.T, unit, which string) time.Duration {
	t.Helper()
	us, err := strconv.ParseInt(r.units[unit][which+"TimestampMonotonic"], 10, 64)
	if err != nil || us == 0 {
		t.Fatalf("%s of %s is not known: %v", which, unit, r.units[unit])
	}
	return time.Duration(us) * time.Microsecond
}

// programs is the guest's time from the network to the target.
func (r *qemuReport) programs(t *testing.T) time.Duration {
	t.Helper()
	return r.at(t, "tpm2cloud.target", "ActiveEnter") - r.at(t, "network-online.target", "ActiveEnter")
}
