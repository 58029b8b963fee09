package device

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/limit"
)

// FuzzBoard: firmware and kernel say anything. A serial number that is believed is one line of
// printable text that tells one board from another, and the same at each reading.
func FuzzBoard(f *testing.F) {
	f.Add("10000000abcdef12\x00", "Default string\n", "processor : 0\nSerial : 00000000\n", "Raspberry Pi 4 Model B Rev 1.4\x00", "dc:a6:32:01:02:03\n")
	f.Add("", "PC-4711\n", "", "", "00:00:00:00:00:00\n")
	f.Add("\x00\x00", " \n", "Serial\t\t: 1\nSerial: 2", "\xff\xff", "02-00-5e-10-00-00-00-01")
	f.Fuzz(func(t *testing.T, tree, dmi, cpuinfo, model, mac string) {
		defer limit.Time(t, 5*time.Second)()
		root := t.TempDir()
		for path, content := range map[string]string{
			"proc/device-tree/serial-number":       tree,
			"proc/device-tree/model":               model,
			"sys/class/dmi/id/product_serial":      dmi,
			"sys/class/dmi/id/board_serial":        dmi,
			"sys/class/dmi/id/product_name":        model,
			"proc/cpuinfo":                         cpuinfo,
			"sys/devices/soc/eth/net/eth0/type":    "1\n",
			"sys/devices/soc/eth/net/eth0/address": mac,
		} {
			path = filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		net := filepath.Join(root, "sys/class/net")
		if err := os.MkdirAll(net, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(root, "sys/devices/soc/eth"), filepath.Join(root, "sys/devices/soc/eth/net/eth0/device")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(root, "sys/devices/soc/eth/net/eth0"), filepath.Join(net, "eth0")); err != nil {
			t.Fatal(err)
		}

		board := New(root, config.Device{})
		for what, read := range map[string]func() (string, error){"serial": board.Serial, "model": board.Model} {
			v, err := read()
			if err != nil {
				continue
			}
			if v == "" || v != strings.TrimSpace(v) || !isText(v) {
				t.Errorf("the %s is %q", what, v)
			}
			if again, err := read(); err != nil || again != v {
				t.Errorf("the %s was %q, and then %q, %v", what, v, again, err)
			}
		}
		if v, err := board.MAC(); err == nil && (len(v) != len("00:00:00:00:00:00") || v != strings.ToLower(v)) {
			t.Errorf("the MAC address is %q", v)
		}
		if v, err := board.ExpandLower("{serial}-{mac}", nil); err == nil && v != strings.ToLower(v) {
			t.Errorf("the name is %q", v)
		}
		if v, err := board.Hash(); err == nil && len(v) != 64 {
			t.Errorf("the hash is %q", v)
		}
	})
}
