package device

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/plain"
)

// board is a root with these files; "-> x" makes a link to x.
func board(t *testing.T, trees ...map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for _, files := range trees {
		for name, text := range files {
			file := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			var err error
			if target, ok := strings.CutPrefix(text, "-> "); ok {
				err = os.Symlink(target, file)
			} else {
				err = os.WriteFile(file, []byte(text), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

// port is an interface as sysfs shows it: at is the path of its device below
// /sys/devices, empty for a virtual interface.
func port(name, at, mac string, more map[string]string) map[string]string {
	home := "sys/devices/virtual/net/" + name
	files := map[string]string{}
	if at != "" {
		home = "sys/devices/" + at + "/net/" + name
		files[home+"/device"] = "-> ../../../" + filepath.Base(at)
	}
	files["sys/class/net/"+name] = "-> ../../../" + home
	files[home+"/address"] = mac + "\n"
	files[home+"/type"] = "1\n"
	files[home+"/addr_assign_type"] = "0\n"
	for attribute, value := range more {
		files[home+"/"+attribute] = value
	}
	return files
}

var (
	pi = map[string]string{
		"proc/device-tree/model":         "Raspberry Pi 4 Model B Rev 1.4\x00",
		"proc/device-tree/serial-number": "100000003d1d1c36\x00",
		"proc/cpuinfo":                   "processor\t: 0\n\nHardware\t: BCM2711\nSerial\t\t: 100000003d1d1c36\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n",
		"etc/machine-id":                 "0123456789abcdef0123456789abcdef\n",
	}
	piEthernet = port("eth0", "platform/scb/fd580000.ethernet", "DC:A6:32:01:02:03", nil)
	piWireless = port("wlan0", "platform/soc/fe300000.mmcnr/mmc1/mmc1:0001", "dc:a6:32:01:02:04", map[string]string{"wireless/x": "", "phy80211/x": ""})
	usbDongle  = port("enx001122334455", "platform/scb/fd500000.pcie/pci0000:00/usb1/1-1/1-1:1.0", "00:11:22:33:44:55", nil)
	loopback   = port("lo", "", "00:00:00:00:00:00", map[string]string{"type": "772\n"})
	bridge     = port("docker0", "", "02:42:00:00:00:01", map[string]string{"addr_assign_type": "3\n"})

	pc = map[string]string{
		"sys/class/dmi/id/sys_vendor":     "Dell Inc.\n",
		"sys/class/dmi/id/product_name":   "OptiPlex 7090\n",
		"sys/class/dmi/id/product_serial": " 7ABCD12 \n",
		"sys/class/dmi/id/board_serial":   "/7ABCD12/CNWS/\n",
		"proc/cpuinfo":                    "processor\t: 0\nvendor_id\t: GenuineIntel\n",
	}
	pcEthernet = port("enp0s31f6", "pci0000:00/0000:00:1f.6", "8c:ec:4b:00:00:01", nil)

	qemu = map[string]string{
		"sys/class/dmi/id/sys_vendor":     "QEMU\n",
		"sys/class/dmi/id/product_name":   "Standard PC (Q35 + ICH9, 2009)\n",
		"sys/class/dmi/id/product_serial": "\n",
		"etc/machine-id":                  "uninitialized\n",
	}
)

func TestExpand(t *testing.T) {
	ek := []byte{0x00, 0x0B, 0xAB, 0xCD}
	for _, tt := range []struct {
		name     string
		root     string
		override config.Device
		pattern  string
		want     string
	}{
		// printf 'MODEL=Raspberry Pi 4 Model B Rev 1.4,SN=100000003d1d1c36,MAC=dc:a6:32:01:02:03\n' | sha256sum
		{"Raspberry Pi", board(t, pi, piEthernet, piWireless, loopback), config.Device{}, "{hash}", "2b2c9370d6b437e962ccd4ba1a632c8cfe8decf7a27328cd0f4668c9419b97f3"},
		{"Raspberry Pi", board(t, pi, piEthernet), config.Device{}, "{model}/{serial}/{mac}/{machine-id}/{ek}",
			"Raspberry Pi 4 Model B Rev 1.4/100000003d1d1c36/dca632010203/0123456789abcdef0123456789abcdef/abcd"},
		{"old kernel", board(t, map[string]string{"proc/cpuinfo": pi["proc/cpuinfo"]}), config.Device{}, "{serial}", "100000003d1d1c36"},
		{"PC", board(t, pc, pcEthernet), config.Device{}, "{model}/{serial}/{mac}", "Dell Inc. OptiPlex 7090/7ABCD12/8cec4b000001"},
		{"white box", board(t, map[string]string{
			"sys/class/dmi/id/sys_vendor":     "To be filled by O.E.M.",
			"sys/class/dmi/id/product_name":   "N100DC",
			"sys/class/dmi/id/product_serial": "Default string",
			"sys/class/dmi/id/board_serial":   "M80-1",
		}), config.Device{}, "{model}/{serial}", "N100DC/M80-1"},
		{"QEMU", board(t, qemu), config.Device{}, "{model}", "QEMU Standard PC (Q35 + ICH9, 2009)"},
		{"override", board(t), config.Device{Model: " M ", Serial: " S1 ", MAC: "AA:bb:cc:00:00:01"}, "{model}/{serial}/{mac}", "M/S1/aabbcc000001"},
		{"nothing asked", board(t), config.Device{}, "gateway-7", "gateway-7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := New(tt.root, tt.override).Expand(tt.pattern, ek)
			if err != nil || got != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}

	got, err := New(board(t, pc), config.Device{}).ExpandLower("GW-{serial}", nil)
	if got != "GW-7abcd12" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestExpandErrors(t *testing.T) {
	const dmiSerial = "sys/class/dmi/id/product_serial"
	for _, tt := range []struct {
		name, root, pattern, want, hint string
	}{
		{"QEMU", board(t, qemu), "{serial}",
			"cannot tell the board's serial: neither the device tree nor DMI nor /proc/cpuinfo has one",
			"set serial below [device] in the configuration"},
		{"placeholders", board(t, map[string]string{dmiSerial: "Default string\n", "proc/cpuinfo": "Serial\t: 0000000000000000\n"}), "{serial}",
			`cannot tell the board's serial: /sys/class/dmi/id/product_serial says "Default string", /proc/cpuinfo says "0000000000000000", which is no serial number`,
			"set serial below [device] in the configuration"},
		{"hash of a placeholder", board(t, map[string]string{"proc/device-tree/model": "X", dmiSerial: "To Be Filled By O.E.M."}, pcEthernet), "{hash}",
			`cannot tell the board's serial: /sys/class/dmi/id/product_serial says "To Be Filled By O.E.M.", which is no serial number`,
			"set serial below [device] in the configuration"},
		{"model", board(t), "{model}",
			"cannot tell the board's model: neither /proc/device-tree/model nor DMI (/sys/class/dmi/id) names it",
			"set model below [device] in the configuration"},
		{"MAC", board(t, loopback, bridge), "{mac}",
			"cannot tell the board's mac: no interface in /sys/class/net is physical and has a permanent address",
			"set mac below [device] in the configuration"},
		{"machine-id", board(t, qemu), "{machine-id}",
			"cannot tell the machine-id: /etc/machine-id is empty or not set up",
			"systemd-machine-id-setup writes it"},
		{"EK", board(t), "{ek}", "the TPM's endorsement key is not known here", ""},
		{"placeholder", board(t), "{uuid}",
			`"{uuid}" has a placeholder that does not exist; allowed: {hash}, {serial}, {model}, {mac}, {machine-id}, {ek}`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(tt.root, config.Device{}).Expand(tt.pattern, nil)
			want := `cannot make a name of "` + tt.pattern + `": ` + tt.want
			if err == nil || err.Error() != want {
				t.Fatalf("got  %v\nwant %s", err, want)
			}
			if step.ClassOf(err) != step.Configuration || step.HintOf(err) != tt.hint {
				t.Errorf("class %d, hint %q", step.ClassOf(err), step.HintOf(err))
			}
		})
	}
}

// A serial number that only root may read is no error until a name needs it,
// and then it is not silently another one.
func TestUnreadable(t *testing.T) {
	plain.User(t)
	root := board(t, pc, pcEthernet)
	if err := os.Chmod(filepath.Join(root, "sys/class/dmi/id/product_serial"), 0); err != nil {
		t.Fatal(err)
	}
	b := New(root, config.Device{})
	if got, err := b.Expand("{mac}", nil); err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := b.Expand("{serial}", nil); step.ClassOf(err) != step.Permission || step.HintOf(err) == "" {
		t.Errorf("got %v, class %d", err, step.ClassOf(err))
	}
}

func TestPlaceholder(t *testing.T) {
	for _, v := range []string{
		"", " ", "0", "0000000000000000", "XXXXXXXX", "xxx", "--------", "........", "1111", "\xff\xff\xff", "a\x01b",
		"Default string", "default string", "To be filled by O.E.M.", "To Be Filled By O.E.M.", "System Serial Number", "Not Specified",
		"None", "N/A", "0123456789", "123456789",
	} {
		if !placeholder(v) {
			t.Errorf("%q is a serial number", v)
		}
	}
	for _, v := range []string{"7ABCD12", "100000003d1d1c36", "0000000000000001", "PF-1 2", "VMware-56 4d"} {
		if placeholder(v) {
			t.Errorf("%q is a placeholder", v)
		}
	}
}

func TestMAC(t *testing.T) {
	lan1 := map[string]string{"dev_port": "0\n"}
	lan2 := map[string]string{"dev_port": "1\n"}
	const slot1, slot2 = "pci0000:00/0000:00:1c.0/0000:02:00.0", "pci0000:00/0000:00:1c.1/0000:03:00.0"
	const mac1, mac2 = "00:00:5e:00:53:01", "00:00:5e:00:53:02"
	for _, tt := range []struct {
		name string
		nics []map[string]string
		want string
	}{
		{"two", []map[string]string{port("eth0", slot1, mac1, nil), port("eth1", slot2, mac2, nil)}, mac1},
		{"two, names swapped", []map[string]string{port("eth1", slot1, mac1, nil), port("eth0", slot2, mac2, nil)}, mac1},
		{"two ports of a device", []map[string]string{port("eth1", slot1, mac1, lan1), port("eth0", slot1, mac2, lan2)}, mac1},
		{"dongle of lower path", []map[string]string{piEthernet, usbDongle}, "dc:a6:32:01:02:03"},
		{"wireless", []map[string]string{piWireless, piEthernet}, "dc:a6:32:01:02:03"},
		{"dongle before wireless", []map[string]string{piWireless, usbDongle}, "00:11:22:33:44:55"},
		{"wireless only", []map[string]string{piWireless, loopback, bridge}, "dc:a6:32:01:02:04"},
		{"drawn by lot", []map[string]string{port("eth0", slot1, mac1, map[string]string{"addr_assign_type": "1\n"}), port("eth1", slot2, mac2, nil)}, mac2},
		{"bonded", []map[string]string{port("eth0", slot1, mac2, map[string]string{"addr_assign_type": "3\n"}), port("bond0", "", mac2, nil), port("eth1", slot2, mac2, nil)}, mac2},
		{"no address", []map[string]string{port("eth0", slot1, "00:00:00:00:00:00", nil), port("eth1", slot2, mac2, nil)}, mac2},
		{"CAN", []map[string]string{port("can0", slot1, "", map[string]string{"type": "280\n"}), port("eth1", slot2, mac2, nil)}, mac2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := New(board(t, tt.nics...), config.Device{}).MAC()
			if err != nil || got != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

// Every placeholder that a configuration may have has a value here.
func TestPlaceholders(t *testing.T) {
	b := New(board(t, pi, piEthernet), config.Device{})
	for _, p := range config.Placeholders() {
		if v, err := b.Expand("{"+p+"}", []byte{0, 0x0B, 1}); err != nil || v == "" {
			t.Errorf("{%s}: %q, %v", p, v, err)
		}
	}
}

func TestReadErrors(t *testing.T) {
	root := board(t, map[string]string{"proc/device-tree/model/x": "", "etc/machine-id/x": ""})
	b := New(root, config.Device{})
	if _, err := b.Model(); err == nil || step.ClassOf(err) != step.Temporary {
		t.Errorf("a model that cannot be read: %v", err)
	}
	if _, err := b.MachineID(); err == nil {
		t.Error("a machine-id that cannot be read is one")
	}
	if _, err := New(root, config.Device{MAC: "x"}).MAC(); step.ClassOf(err) != step.Configuration {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(root, "sys"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := b.MAC(); err == nil {
		t.Error("a list of interfaces that cannot be read has one")
	}
}
