package edgecfg

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"syscall"

	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// The files that this program writes for aziot, as paths of the configuration.
const (
	superPath  = "/etc/aziot/config.toml"
	ldevidPath = "/etc/aziot/tpm2cloud/ldevid.pem"
	estCAPath  = "/etc/aziot/tpm2cloud/est-ca.pem"
	dropInPath = "/etc/systemd/system/aziot-keyd.service.d/" + dropIn
	certdPath  = "/etc/systemd/system/aziot-certd.service.d/" + dropIn

	// certdGroup is certd's primary group; the checks of aziotctl look at no other.
	certdGroup = "aziotcs"

	// dirMode lets everybody through to the files, whose modes say who may read them.
	dirMode = 0o755
)

// file is one of them.
type file struct {
	path  string
	data  []byte
	mode  fs.FileMode
	group string // "": root's
}

// fileList makes the files of w, in the order in which they are written:
// config.toml is last, because it names the others.
func (p *Program) fileList(w *wanted) ([]file, error) {
	var list []file
	if w.readsLDevID() {
		list = append(list, file{ldevidPath, w.ldevid.pem(), 0o640, certdGroup}, file{certdPath, []byte(certdDropIn), 0o644, ""})
	}
	if w.in.estCA != "" {
		certs, err := p.readServerCA()
		if err != nil {
			return nil, err
		}
		list = append(list, file{estCAPath, devid.EncodePEM(certs), 0o640, certdGroup})
	}
	unit, err := p.keydDropIn()
	if err != nil {
		return nil, classify(err)
	}
	return append(list, file{dropInPath, unit, 0o644, ""}, file{superPath, w.super.render(), 0o600, ""}), nil
}

// filesStep writes them.
type filesStep struct{ p *Program }

func (s *filesStep) Name() string { return "files" }

func (s *filesStep) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{Object: s.p.cfg.Path(superPath)}
	w, err := s.p.want()
	if err != nil {
		return obs, err
	}
	var wrong []string
	for _, f := range w.files {
		good, err := s.p.good(f)
		if err != nil {
			return obs, err
		}
		if !good {
			wrong = append(wrong, f.path)
		}
	}
	if obs.Warnings, err = s.p.backups(); err != nil {
		return obs, err
	}
	switch edited, err := s.p.edited(w); {
	case err != nil:
		return obs, err
	case len(wrong) == len(w.files) && !edited:
		obs.Detail = "not written yet"
	case len(wrong) > 0:
		obs.State, obs.Detail = step.Partial, "not as configured: "+strings.Join(wrong, ", ")
		if edited {
			obs.Detail += "; config.toml was edited by somebody, and is kept beside it before it is replaced"
		}
	default:
		obs.State, obs.Detail = step.Present, fmt.Sprintf("method %s, device id %s", s.p.cfg.Edge.Method, w.in.deviceID)
	}
	return obs, nil
}

// Act checks what would make the new configuration harmful and writes the
// files only then: an agent that works goes on with what it has.
func (s *filesStep) Act(ctx context.Context, _ step.Observation) error {
	w, err := s.p.want()
	if err != nil {
		return err
	}
	if err := s.p.ready(ctx, w); err != nil {
		return err
	}
	for _, f := range w.files {
		if f.path == superPath {
			if err := s.p.keepEdited(w); err != nil {
				return err
			}
		}
		if err := s.p.write(f); err != nil {
			return classify(err)
		}
	}
	return nil
}

// good says whether a file is as it must be.
func (p *Program) good(f file) (bool, error) {
	dir := store.Open(p.cfg.Path(path.Dir(f.path)), dirMode)
	defer dir.Close()
	if !dir.Same(path.Base(f.path), f.data, f.mode) {
		return false, nil
	}
	owner, err := p.owner(f)
	if err != nil || owner == nil {
		return err == nil, err
	}
	info, err := os.Lstat(p.cfg.Path(f.path))
	if err != nil {
		return false, classify(fmt.Errorf("cannot look at the owner: %w", err))
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == owner.UID && int(st.Gid) == owner.GID, nil
}

// owner is whom a file must belong to; nil is whoever writes it. Root's group
// stands in for one that the agent's package has yet to make: the next run
// gives the file to it.
func (p *Program) owner(f file) (*store.Owner, error) {
	if os.Geteuid() != 0 {
		return nil, nil // a run by hand below another root: nobody else reads it
	}
	if f.group == "" {
		return &store.Owner{}, nil
	}
	gid, found, err := p.groupID(f.group)
	if err != nil {
		return nil, classify(err)
	}
	if !found {
		gid = 0
	}
	return &store.Owner{GID: gid}, nil
}

func (p *Program) write(f file) error {
	if good, err := p.good(f); err != nil || good {
		return err
	}
	if err := p.makeDir(path.Dir(f.path)); err != nil {
		return err
	}
	owner, err := p.owner(f)
	if err != nil {
		return err
	}
	var opts []store.Option
	if owner != nil {
		opts = append(opts, store.OwnedBy(*owner))
	}
	dir := store.Open(p.cfg.Path(path.Dir(f.path)), dirMode)
	defer dir.Close()
	return dir.Write(path.Base(f.path), f.data, f.mode, opts...)
}

// makeDir makes a directory and its parents, each with its mode whatever the
// umask: certd must come through all of them.
func (p *Program) makeDir(name string) error {
	if name == "/" {
		return nil
	}
	if err := p.makeDir(path.Dir(name)); err != nil {
		return err
	}
	dir := store.Open(p.cfg.Path(name), dirMode)
	defer dir.Close()
	return dir.Create()
}

// readableByCertd looks at the directories above the certificates. aziotctl
// wants read and search for others (or for certd) on each; and certd that
// cannot read its certificate is how keys get lost.
func (p *Program) readableByCertd(w *wanted) error {
	for _, f := range w.files {
		if f.group == "" {
			continue
		}
		for dir := path.Dir(f.path); dir != "/"; dir = path.Dir(dir) {
			info, err := os.Stat(p.cfg.Path(dir))
			if err != nil {
				return classify(fmt.Errorf("cannot look whether certd can read %s: %w", f.path, err))
			}
			if info.Mode().Perm()&0o005 != 0o005 {
				return step.As(step.Refused, "chmod 0755 "+p.cfg.Path(dir),
					fmt.Errorf("cannot let certd read %s: the directory %s has mode %#o", f.path, p.cfg.Path(dir), info.Mode().Perm()))
			}
		}
	}
	return nil
}

// edited says whether somebody else than this program wrote the config.toml
// that is to be replaced.
func (p *Program) edited(w *wanted) (bool, error) {
	have, err := p.existingSuper()
	return have != nil && !ours(have) && !bytes.Equal(have, w.super.render()), err
}

func (p *Program) existingSuper() ([]byte, error) {
	have, err := os.ReadFile(p.cfg.Path(superPath))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, classify(fmt.Errorf("cannot read the configuration of the agent: %w", err))
	}
	return have, nil
}

// backup names the copy of a config.toml after its content, so that a run that
// was cut makes the same copy again and not another one.
var backup = regexp.MustCompile(`^config\.toml\.[0-9a-f]{12}\.bak$`)

// keepEdited copies a config.toml that somebody else wrote.
func (p *Program) keepEdited(w *wanted) error {
	edited, err := p.edited(w)
	if err != nil || !edited {
		return err
	}
	have, err := p.existingSuper()
	if err != nil {
		return err
	}
	digest := sha256.Sum256(have)
	name := fmt.Sprintf("config.toml.%x.bak", digest[:6])
	return classify(p.write(file{path.Join(path.Dir(superPath), name), have, 0o600, ""}))
}

// backups are warnings until a person has looked at the copies and removed them.
func (p *Program) backups() ([]string, error) {
	entries, err := os.ReadDir(p.cfg.Path(path.Dir(superPath)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, classify(fmt.Errorf("cannot look for copies of config.toml: %w", err))
	}
	var warnings []string
	for _, e := range entries {
		if backup.MatchString(e.Name()) {
			warnings = append(warnings, fmt.Sprintf("%s is a config.toml that somebody edited and this program replaced: move what is needed to /etc/tpm2cloud, then remove it",
				p.cfg.Path(path.Join(path.Dir(superPath), e.Name()))))
		}
	}
	return warnings, nil
}
