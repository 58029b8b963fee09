package edgecfg

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Program is the program tpm2cloud-edgecfg without its command line.
type Program struct {
	cfg    *config.Config
	opts   Options
	method method

	// How long keyd may take to answer after an apply, and the first of the
	// waits between two tries.
	keydPatience, keydWait time.Duration
}

// Options are the parts of the world that are not files below the root.
type Options struct {
	// Clock is the time at which certificates are judged; nil means [clock.Read].
	Clock func(floors ...time.Time) clock.Clock
	// SystemTime is the time that the agent sees: the system's clock as it is,
	// right or wrong. Nil means [time.Now].
	SystemTime func() time.Time
}

// New prepares a run for a configuration that was checked for this program.
func New(cfg *config.Config, o Options) (*Program, error) {
	m, ok := methods[cfg.Edge.Method]
	if !ok {
		return nil, step.Fail(step.Configuration, "cannot configure the agent: %q is no method of [edge]", string(cfg.Edge.Method))
	}
	if o.Clock == nil {
		o.Clock = clock.Read
	}
	if o.SystemTime == nil {
		o.SystemTime = time.Now
	}
	return &Program{cfg: cfg, opts: o, method: m, keydPatience: time.Minute, keydWait: time.Second / 4}, nil
}

// Steps are the program, in order.
func (p *Program) Steps() []step.Step {
	return []step.Step{
		&ldevidStep{p},
		&namesStep{p},
		&filesStep{p},
		&applyStep{p},
		&wipeStep{p},
	}
}

// wanted is how the files must be. It is worked out anew at each look from the
// configuration and the LDevID, and from nothing that was kept.
type wanted struct {
	in     inputs
	super  superConfig
	ldevid *ldevid
	files  []file
}

// want reads what the configuration is made of. Nothing in it needs the network.
func (p *Program) want() (*wanted, error) {
	id, err := p.readLDevID()
	if err != nil {
		return nil, err
	}
	name, err := p.deviceID(id)
	if err != nil {
		return nil, err
	}
	w := &wanted{ldevid: id, in: inputs{
		edge:     p.cfg.Edge,
		deviceID: name,
		token:    tokenURI{token: p.cfg.LDevID.Token.Label, object: p.cfg.LDevID.Token.Key},
		ldevid:   p.cfg.Path(ldevidPath),
	}}
	if w.in.token.pin, err = p.readPIN(); err != nil {
		return nil, err
	}
	// Where it is not installed yet, keyd will find it later.
	w.in.module, _ = p.cfg.Module()
	overEST := p.cfg.Edge.Method != config.EdgeDPS
	if overEST && p.cfg.Edge.EST.ServerCA != config.SystemCA {
		w.in.estCA = p.cfg.Path(estCAPath)
	}
	if overEST && p.cfg.Edge.EST.Username != "" {
		if w.in.password, err = p.cfg.ReadSecret(p.cfg.Edge.EST.Password); err != nil {
			return nil, fmt.Errorf("cannot configure the agent for EST: %w", err)
		}
	}
	w.super = p.method(&w.in)
	if w.files, err = p.fileList(w); err != nil {
		return nil, err
	}
	return w, nil
}

// readsLDevID says whether certd reads the LDevID certificate.
func (w *wanted) readsLDevID() bool {
	return w.super.attestation.preloaded != nil || w.super.est != nil && w.super.est.identity != nil
}

// Refresh copies a renewed LDevID to where certd reads it, and nothing else: for
// the moment of a boot before certd starts, which it does not do with one that
// has ended. Whatever else is to be done waits for the program itself, and so does
// a device that was never configured.
func (p *Program) Refresh() (changed bool, err error) {
	f, good, err := p.copied()
	if err != nil || f == nil || good {
		return false, err
	}
	return true, classify(p.write(*f))
}

// Pending says whether the agent has yet to take over a renewed LDevID: its copy
// is the earlier one, or is newer than what the agent runs, or an apply was not
// seen to its end. A configuration that somebody edits meanwhile is not meant.
func (p *Program) Pending() (bool, error) {
	f, good, err := p.copied()
	switch {
	case err != nil || f == nil:
		return false, err
	case !good:
		return true, nil
	case p.cfg.Edge.Apply == config.ApplyNever || p.tool() == "":
		return false, nil
	case p.marked(markApply) || p.marked(markReprovision):
		return true, nil
	}
	why, err := p.outdated([]file{*f})
	return why != "", classify(err)
}

// copied is the copy of the LDevID, as it must be, and whether it is so; nil where
// there is none.
func (p *Program) copied() (copied *file, good bool, err error) {
	if !exists(p.cfg.Path(ldevidPath)) {
		return nil, false, nil
	}
	w, err := p.want()
	if err != nil {
		return nil, false, err
	}
	for _, f := range w.files {
		if f.path == ldevidPath {
			good, err = p.good(f)
			return &f, good, err
		}
	}
	return nil, false, nil
}

// state is the path of a file of the project's state.
func (p *Program) state(elem ...string) string {
	return p.cfg.Path(filepath.Join(append([]string{p.cfg.Run.State}, elem...)...))
}

// classify gives an error of the file system its class.
func classify(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return step.As(step.Permission, "run it as root", err)
	}
	return err
}
