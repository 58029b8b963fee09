package device

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const netClass = "/sys/class/net"

// nic is a physical network interface.
type nic struct {
	mac      string
	wireless bool
	usb      bool
	device   string // where in the machine it is: the resolved path of its device
	port     string // of a device with several interfaces
}

// interfaces lists the physical interfaces, the board's own first.
//
// The order is that of their places in the machine: wired before wireless,
// soldered or plugged into a bus before USB, then by the path of the device.
// Neither their names nor their indices would do: both are given in the order
// in which drivers find the devices, and may change from boot to boot, and an
// identity that was made of an address must not.
func (i *Info) interfaces() ([]nic, error) {
	dir := filepath.Join(i.root, netClass)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list network interfaces: %w", err)
	}
	var nics []nic
	for _, e := range entries {
		if n, ok := i.inspect(filepath.Join(netClass, e.Name())); ok {
			nics = append(nics, n)
		}
	}
	slices.SortFunc(nics, func(a, b nic) int {
		return cmp.Or(
			falseFirst(a.wireless, b.wireless),
			falseFirst(a.usb, b.usb),
			strings.Compare(a.device, b.device),
			strings.Compare(a.port, b.port),
			strings.Compare(a.mac, b.mac),
		)
	})
	return nics, nil
}

// inspect says what the interface is, and false when it is not a physical one
// with an address of its own. An interface may vanish while it is looked at,
// so what cannot be read is not there.
func (i *Info) inspect(path string) (nic, bool) {
	read := func(attribute string) string {
		v, err := source{i, filepath.Join(path, attribute)}.read()
		if err != nil {
			return ""
		}
		return v
	}
	// A bridge, a tunnel, a container's veth have no device.
	device, err := filepath.EvalSymlinks(filepath.Join(i.root, path, "device"))
	if err != nil {
		return nic{}, false
	}
	// ARPHRD_ETHER: CAN, for one, has no MAC address.
	if read("type") != "1" {
		return nic{}, false
	}
	// NET_ADDR_PERM: an address that the kernel drew by lot is another one at
	// the next boot, and one that was set (a bond, a privacy setting) is not
	// the board's.
	if assigned := read("addr_assign_type"); assigned != "" && assigned != "0" {
		return nic{}, false
	}
	hw, err := net.ParseMAC(read("address"))
	if err != nil || len(hw) != 6 || hw.String() == "00:00:00:00:00:00" {
		return nic{}, false
	}
	return nic{
		mac:      hw.String(),
		wireless: i.exists(path, "wireless") || i.exists(path, "phy80211"),
		usb:      strings.Contains(device, "/usb"),
		device:   device,
		port:     read("dev_port"),
	}, true
}

func (i *Info) exists(elem ...string) bool {
	_, err := os.Lstat(filepath.Join(i.root, filepath.Join(elem...)))
	return err == nil
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
