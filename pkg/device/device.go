// Package device reads what a board says of itself (its model, its serial
// number, the MAC address of its network interface) and makes the names of its
// identities of that.
//
// A value comes from the first place that has one:
//
//	model       /proc/device-tree/model, else sys_vendor and product_name of DMI
//	serial      /proc/device-tree/serial-number, else product_serial or
//	            board_serial of DMI, else the Serial line of /proc/cpuinfo
//	mac         the permanent address of the first physical interface
//	machine-id  /etc/machine-id
//
// and [device] of the configuration overrides the first three. Each is read
// when a name asks for it and at no other time: DMI shows a serial number to
// root only, and a board whose names have no {serial} in them may have none.
//
// What a factory left as it was ("Default string", zeros) is no serial number:
// a fleet of boards would get one name. It is an error, and the configuration
// can say better.
package device

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Info is one board. It keeps nothing of what it reads.
type Info struct {
	root     string
	override config.Device
}

// New is the board whose /proc, /sys and /etc lie below root.
func New(root string, override config.Device) *Info {
	return &Info{root: root, override: override}
}

// Expand makes a name of a pattern (see [config.Expand]):
//
//	{serial}, {model}  as the board says them, without the spaces around them
//	{mac}              twelve lower-case hex digits, because a colon is not
//	                   allowed in the name of an Azure device
//	{machine-id}       as it is
//	{ek}               the digest in ekName, in lower-case hex
//	{hash}             see [Info.Hash]
//
// The ekName is the TPM name of the endorsement key, and nil where no key is
// known; its first two bytes, which say how the digest was made, are left out,
// because a common name has room for 64 digits.
func (i *Info) Expand(pattern string, ekName []byte) (string, error) {
	return i.expand(pattern, ekName, func(s string) string { return s })
}

// ExpandLower is Expand with placeholders that become lower case, as the names
// of Azure devices must be. What else stands in the pattern stays as it is.
func (i *Info) ExpandLower(pattern string, ekName []byte) (string, error) {
	return i.expand(pattern, ekName, strings.ToLower)
}

func (i *Info) expand(pattern string, ekName []byte, fold func(string) string) (string, error) {
	name, err := config.Expand(pattern, func(placeholder string) (string, error) {
		v, err := i.value(placeholder, ekName)
		return fold(v), err
	})
	if err != nil {
		return "", fmt.Errorf("cannot make a name of %q: %w", pattern, err)
	}
	return name, nil
}

func (i *Info) value(placeholder string, ekName []byte) (string, error) {
	switch placeholder {
	case "hash":
		return i.Hash()
	case "serial":
		return i.Serial()
	case "model":
		return i.Model()
	case "mac":
		mac, err := i.MAC()
		return strings.ReplaceAll(mac, ":", ""), err
	case "machine-id":
		return i.MachineID()
	case "ek":
		const algorithm = 2 // bytes of TPM_ALG_ID
		if len(ekName) <= algorithm {
			return "", step.Fail(step.Configuration, "the TPM's endorsement key is not known here")
		}
		return hex.EncodeToString(ekName[algorithm:]), nil
	}
	return "", step.Fail(step.Software, "placeholder {%s} has no value", placeholder)
}

// Hash is the SHA-256, in lower-case hex, of the line
//
//	MODEL=<model>,SN=<serial>,MAC=<mac, with colons>
//
// with its line end: the common name of an IDevID since the first release of
// TPM2Cloud, which was made of shell scripts. It has as many digits as a common
// name may have.
func (i *Info) Hash() (string, error) {
	model, err := i.Model()
	if err != nil {
		return "", err
	}
	serial, err := i.Serial()
	if err != nil {
		return "", err
	}
	mac, err := i.MAC()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "MODEL=%s,SN=%s,MAC=%s\n", model, serial, mac))
	return hex.EncodeToString(sum[:]), nil
}

// Model is the board's model.
func (i *Info) Model() (string, error) {
	if v := strings.TrimSpace(i.override.Model); v != "" {
		return v, nil
	}
	tree := source{i, "/proc/device-tree/model"}
	if v, err := tree.read(); err != nil || v != "" && isText(v) {
		return v, err
	}
	var known []string
	for _, file := range []string{"sys_vendor", "product_name"} {
		v, err := source{i, filepath.Join(dmi, file)}.read()
		if err != nil {
			return "", err
		}
		if !placeholder(v) {
			known = append(known, v)
		}
	}
	if len(known) == 0 {
		return "", unknown("model", "neither %s nor DMI (%s) names it", tree.path, dmi)
	}
	return strings.Join(known, " "), nil
}

// Serial is the board's serial number.
func (i *Info) Serial() (string, error) {
	if v := strings.TrimSpace(i.override.Serial); v != "" {
		if placeholder(v) {
			return "", unknown("serial", "[device] serial is %q, which is no serial number", v)
		}
		return v, nil
	}
	var said []string
	for _, s := range []source{
		{i, "/proc/device-tree/serial-number"},
		{i, filepath.Join(dmi, "product_serial")},
		{i, filepath.Join(dmi, "board_serial")},
		{i, cpuinfo},
	} {
		v, err := s.read()
		switch {
		case err != nil:
			return "", step.Hint(err, "run it as root, or set serial below [device] in the configuration")
		case v == "":
		case placeholder(v):
			said = append(said, fmt.Sprintf("%s says %q", s.path, v))
		default:
			return v, nil
		}
	}
	if len(said) == 0 {
		return "", unknown("serial", "neither the device tree nor DMI nor %s has one", cpuinfo)
	}
	return "", unknown("serial", "%s, which is no serial number", strings.Join(said, ", "))
}

// MachineID is the system's, which an image that was written anew changes.
func (i *Info) MachineID() (string, error) {
	s := source{i, "/etc/machine-id"}
	v, err := s.read()
	if err != nil {
		return "", err
	}
	if !machineID.MatchString(v) {
		return "", step.As(step.Configuration, "systemd-machine-id-setup writes it",
			fmt.Errorf("cannot tell the machine-id: %s is empty or not set up", s.path))
	}
	return v, nil
}

// MAC is the address of the first physical interface, in lower case and with
// colons.
func (i *Info) MAC() (string, error) {
	if v := strings.TrimSpace(i.override.MAC); v != "" {
		hw, err := net.ParseMAC(v)
		if err != nil {
			return "", step.As(step.Configuration, "", fmt.Errorf("cannot use [device] mac: %w", err))
		}
		return hw.String(), nil
	}
	nics, err := i.interfaces()
	if err != nil {
		return "", err
	}
	if len(nics) == 0 {
		return "", unknown("mac", "no interface in %s is physical and has a permanent address", netClass)
	}
	return nics[0].mac, nil
}

const (
	dmi     = "/sys/class/dmi/id"
	cpuinfo = "/proc/cpuinfo"
)

var machineID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// unknown is the error for a value that the board does not tell.
func unknown(key, format string, args ...any) error {
	return step.As(step.Configuration, fmt.Sprintf("set %s below [device] in the configuration", key),
		fmt.Errorf("cannot tell the board's %s: "+format, append([]any{key}, args...)...))
}

// source is a file that may have a value.
type source struct {
	board *Info
	path  string
}

// read returns "" where there is no such file.
func (s source) read() (string, error) {
	data, err := os.ReadFile(filepath.Join(s.board.root, s.path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case errors.Is(err, fs.ErrPermission):
		return "", step.As(step.Permission, "run it as root", fmt.Errorf("cannot read %s: permission denied", s.path))
	case err != nil:
		return "", fmt.Errorf("cannot read %s: %w", s.path, err)
	}
	text := string(data)
	if s.path == cpuinfo {
		text = serialLine(text)
	}
	// Strings of the device tree end with a NUL, those of sysfs with a newline.
	return strings.Trim(text, " \t\r\n\x00"), nil
}

// serialLine finds "Serial : 10000000abcdef12" in /proc/cpuinfo of an ARM.
func serialLine(text string) string {
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "Serial" {
			return value
		}
	}
	return ""
}
