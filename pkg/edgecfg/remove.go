package edgecfg

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/reset"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// What this program wrote for the agent, taken away again: the agent's services
// are stopped, then what they made of our configuration goes, then our files,
// config.toml last, because it is what the rest is known by. Each step is
// present when its object is gone. A config.toml without our first line is
// somebody else's, and then so is all that the daemons made of it.

// Removal are the steps.
func (p *Program) Removal() []reset.Step {
	return []reset.Step{
		&stopStep{p: p},
		&removeStep{p, "agent-state", p.daemonState, nil},
		&removeStep{p, "agent-files", p.ownFiles, p.kept},
	}
}

// written says whether the agent's configuration is this program's, edited since
// or not.
func (p *Program) written() (bool, error) {
	have, err := p.existingSuper()
	return sealed.Match(have), err
}

// daemonState is what the agent's daemons made of our configuration: their own,
// the operational certificate and its key where that is a file, and the device
// that they registered.
func (p *Program) daemonState() ([]string, error) {
	ours, err := p.written()
	if err != nil || !ours {
		return nil, err
	}
	return p.existing("/etc/aziot/*/config.d/00-super.toml", operationalCertificates,
		"/var/lib/aziot/keyd/keys/deviceid-*.key", "/var/lib/aziot/identityd/device_info")
}

// operationalCertificates has the id "device-id" without its hyphen, and a
// digest of it.
const operationalCertificates = "/var/lib/aziot/certd/certs/deviceid-*.cer"

// ownFiles are the files that this program wrote.
func (p *Program) ownFiles() ([]string, error) {
	list, _, err := p.directory()
	if err != nil {
		return nil, err
	}
	more, err := p.existing(dropInPath, certdPath, path.Join(p.cfg.Run.State, marksDir, "*"), path.Join(p.cfg.Run.State, marksDir))
	if err != nil {
		return nil, err
	}
	list = append(list, more...)
	ours, err := p.written()
	if err == nil && ours {
		list = append(list, p.cfg.Path(superPath))
	}
	return list, err
}

// directory tells our files in our directory, with what a write that was cut has
// left there, from those of others. Where there are none of others, the directory
// is the last of ours.
func (p *Program) directory() (ours, others []string, err error) {
	dir := p.cfg.Path(path.Dir(ldevidPath))
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if errors.Is(err, syscall.ENOTDIR) {
		return nil, []string{dir}, nil
	}
	if err != nil {
		return nil, nil, classify(fmt.Errorf("cannot look for our files: %w", err))
	}
	for _, e := range entries {
		list := &others
		for _, file := range []string{path.Base(ldevidPath), path.Base(estCAPath)} {
			if !e.IsDir() && (e.Name() == file || store.Left(e.Name(), file)) {
				list = &ours
			}
		}
		*list = append(*list, filepath.Join(dir, e.Name()))
	}
	if len(others) == 0 {
		ours = append(ours, dir)
	}
	return ours, others, nil
}

// existing are the paths of this system that match patterns of the
// configuration.
func (p *Program) existing(patterns ...string) (list []string, err error) {
	for _, pattern := range patterns {
		found, err := filepath.Glob(p.cfg.Path(pattern))
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	return list, nil
}

// stopStep stops the agent: what runs would go on with what it has in memory,
// and write it down again.
type stopStep struct {
	p       *Program
	stopped bool
}

func (s *stopStep) Name() string { return "agent-stop" }

func (s *stopStep) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{State: step.Present, Object: "the agent's services", Detail: "stopped"}
	if s.stopped || s.p.tool() == "" {
		return obs, nil
	}
	for _, of := range []func() ([]string, error){s.p.daemonState, s.p.ownFiles} {
		list, err := of()
		if err != nil {
			return obs, err
		}
		if len(list) > 0 {
			obs.State, obs.Detail = step.Partial, "to be stopped: "+s.p.tool()+" system stop"
			return obs, nil
		}
	}
	obs.Detail = "nothing of ours is configured"
	return obs, nil
}

func (s *stopStep) Remove(ctx context.Context) error {
	if err := s.p.run(ctx, nil, s.p.tool(), "system", "stop"); err != nil {
		return fmt.Errorf("cannot stop the agent: %w", err)
	}
	s.stopped = true
	return nil
}

// removeStep removes files, in their order.
type removeStep struct {
	p     *Program
	name  string
	files func() ([]string, error)
	kept  func() ([]string, error) // what is not ours, in words; nil: nothing
}

func (s *removeStep) Name() string { return s.name }

func (s *removeStep) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{State: step.Present, Object: s.p.cfg.Path(path.Dir(superPath)), Detail: "nothing of ours"}
	list, err := s.files()
	if err != nil {
		return obs, err
	}
	if len(list) > 0 {
		obs.State, obs.Object, obs.Detail = step.Partial, strings.Join(list, ", "), ""
	}
	if s.kept != nil {
		if obs.Warnings, err = s.kept(); err != nil {
			return obs, err
		}
	}
	return obs, nil
}

// kept is what is in our files' places and is somebody else's.
func (p *Program) kept() (list []string, err error) {
	have, err := p.existingSuper()
	if err != nil {
		return nil, err
	}
	if have != nil && !sealed.Match(have) {
		list = append(list, fmt.Sprintf("kept: %s, which tpm2cloud-edgecfg did not write, and what the agent made of it", p.cfg.Path(superPath)))
	}
	_, others, err := p.directory()
	if err != nil {
		return nil, err
	}
	for _, name := range others {
		list = append(list, fmt.Sprintf("kept: %s, which tpm2cloud-edgecfg did not write", name))
	}
	copies, err := p.existing(path.Dir(superPath) + "/config.toml.*.bak")
	if err != nil {
		return nil, err
	}
	for _, name := range copies {
		if backup.MatchString(filepath.Base(name)) {
			list = append(list, fmt.Sprintf("kept: %s, a config.toml of somebody else; there may be secrets of the owner in it", name))
		}
	}
	return list, nil
}

func (s *removeStep) Remove(ctx context.Context) error {
	list, err := s.files()
	if err != nil {
		return err
	}
	for _, name := range list {
		dir := store.Open(filepath.Dir(name), dirMode)
		err := dir.Remove(filepath.Base(name))
		if err := errors.Join(err, dir.Close()); err != nil {
			return classify(err)
		}
	}
	// systemd forgets the drop-in, so that keyd does not start with it again.
	return s.p.reloadUnits(ctx, nil)
}

// Operational are the certificates that the agent got with our configuration.
func (p *Program) Operational() ([]*x509.Certificate, error) {
	ours, err := p.written()
	if err != nil || !ours {
		return nil, err
	}
	files, err := p.existing(operationalCertificates)
	if err != nil {
		return nil, err
	}
	var list []*x509.Certificate
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, classify(fmt.Errorf("cannot read an operational certificate: %w", err))
		}
		if leaf, _, err := devid.ParseChainPEM(data); err == nil {
			list = append(list, leaf)
		}
	}
	return list, nil
}
