package check

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

func fileChecks() []Check {
	return []Check{
		{ID: "secret-modes", Title: "Files with secrets are closed to all who need not read them, and belong to nobody else.", run: secretModes},
		{ID: "tss", Title: "Nobody but tpm2cloud and the agent's key service may open the TPM.", run: tpmUsers},
	}
}

// private is a place for secrets and what its mode must not have.
type private struct {
	pattern string // of filepath.Glob, a path of the configuration
	forbid  fs.FileMode
	mode    string // as it should be, for chmod
	root    bool   // it must be root's
}

func (s *Subject) private() []private {
	state := s.Config.Run.State
	return []private{
		{"/etc/tpm2cloud/credentials", 0o077, "0700", true},
		{"/etc/tpm2cloud/credentials/*", 0o077, "0600", true},
		{filepath.Join(state, identity.Pins), 0o077, "0700", false},
		{filepath.Join(state, identity.Pins, "*"), 0o077, "0600", false},
		{filepath.Join(state, identity.IDevID, identity.FileKey), 0o077, "0600", false},
		{s.Config.LDevID.Token.Store, 0o007, "2770", false},
		{filepath.Join(s.Config.LDevID.Token.Store, "*.sqlite3"), 0o007, "0660", false},
		{"/etc/aziot/config.toml", 0o077, "0600", true},
		// Each belongs to the daemon that reads it.
		{"/etc/aziot/*/config.d/00-super.toml", 0o077, "0600", false},
	}
}

func secretModes(_ context.Context, s *Subject) finding {
	n := 0
	for _, p := range s.private() {
		paths, err := filepath.Glob(s.Config.Path(p.pattern))
		if err != nil {
			return finding{err: err}
		}
		for _, path := range paths {
			info, err := os.Lstat(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if errors.Is(err, fs.ErrPermission) {
				return finding{err: step.As(step.Permission, "", err)}
			}
			if err != nil {
				return finding{err: err}
			}
			n++
			if info.Mode().Perm()&p.forbid != 0 {
				return refuse(step.Refused, fmt.Sprintf("chmod %s %s; if others were on this device, give it new secrets", p.mode, path),
					"%s has mode %04o, and others may read it", path, info.Mode().Perm())
			}
			if owner := info.Sys().(*syscall.Stat_t).Uid; p.root && owner != 0 && s.onThisSystem() {
				return refuse(step.Refused, "chown root:root "+path, "%s belongs to user %d, not to root", path, owner)
			}
		}
	}
	return found("%d files and directories", n)
}

// tpmUsers looks into the group that opens the TPM: whoever is in it may be the
// device as its IDevID.
func tpmUsers(_ context.Context, s *Subject) finding {
	f, err := os.Open(s.Config.Path("/etc/group"))
	if errors.Is(err, fs.ErrNotExist) {
		return skip("there is no /etc/group")
	}
	if err != nil {
		return finding{err: err}
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) < 4 || fields[0] != "tss" {
			continue
		}
		others := slices.DeleteFunc(strings.Split(fields[3], ","), func(member string) bool {
			return slices.Contains([]string{"", "tss", "tpm2cloud", "aziotks"}, member)
		})
		if len(others) > 0 {
			return warn("gpasswd -d USER tss, for each who need not", "in the group tss are also %s", strings.Join(others, ", "))
		}
	}
	if err := lines.Err(); err != nil {
		return finding{err: err}
	}
	if !s.Config.TPM.Software() {
		info, err := os.Stat(s.Config.TPMDevice())
		if err == nil && info.Mode().Perm()&0o007 != 0 {
			return refuse(step.Refused, "which udev rule does that? That of tpm-udev has 0660", "%s has mode %04o: everybody may open it", s.Config.TPMDevice(), info.Mode().Perm())
		}
	}
	return finding{}
}
