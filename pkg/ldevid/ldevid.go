// Package ldevid gives a device its owner's identity: the steps of
// tpm2cloud-ldevid, in their order.
//
//	idevid              the manufacturer's identity is there, is the one that
//	                    is expected, and the TPM proves that it holds its key
//	srk                 the storage root key at 0x81000001
//	token               a PKCS#11 token under it, with random PINs
//	ldevid-key          a key under the SRK, at 0x81000002 and in the token
//	ldevid-certificate  its certificate from the owner's CA, on disk
//
// A step is one file. What one step learns and another needs is in [Program];
// what outlives the run is in the TPM, in the token's store and in the state
// directory:
//
//	pins/user-pin, so-pin   the token's PINs: 0600 in a directory of 0700
//	pins/tokens.json        the tokens that were made here and have them
//	ldevid/                 as pkg/identity has it
//	ldevid/srk.json         the name of the storage root key, if it was made here
package ldevid

import (
	"path/filepath"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/device"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
	"github.com/tpm2cloud/tpm2cloud/pkg/token"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// Program is one run of tpm2cloud-ldevid.
type Program struct {
	cfg    *config.Config
	tpm    *tpm.TPM
	device *device.Info
	clock  func() clock.Clock // read anew: it may be set while a run waits
	files  *store.Dir         // of the LDevID
	idevid *store.Dir
	pins   *store.Dir
	shelf  *store.Dir // the directory of the token's store

	// What the steps saw, for those that follow.
	ek          identity.EK
	ekName      []byte
	idevidKey   *tpm.Key
	idevidChain *devid.Chain
	srk         *tpm.Key
	token       *token.Token
	secret      opened
	pair        *token.Key // the LDevID's two rows in the token; nil: none
	coming      *token.Key // those of the key that is to take its place; nil: none
	earlier     *token.Key // those of the key that a renewal has replaced; nil: none
	key         *tpm.Key   // the LDevID at its handle; nil: none
	order       identity.Order
	enrolled    bool // its certificate is as it must be
}

// New makes a run. It reads nothing and changes nothing.
func New(cfg *config.Config, t *tpm.TPM, board *device.Info, now func() clock.Clock) *Program {
	state := cfg.Path(cfg.Run.State)
	return &Program{
		cfg: cfg, tpm: t, device: board, clock: now,
		files:  identity.Dir(cfg, identity.LDevID),
		idevid: identity.Dir(cfg, identity.IDevID),
		pins:   store.Open(filepath.Join(state, identity.Pins), 0o700),
		shelf:  store.Open(cfg.Path(cfg.LDevID.Token.Store), shelfMode),
	}
}

// Steps are the program.
func (p *Program) Steps() []step.Step {
	return []step.Step{
		idevid{p},
		srk{p},
		tokenStep{p},
		ldevidKey{p},
		ldevidCertificate{p},
	}
}

// prepare finds out, before the first change of the TPM, what would stop the
// run afterwards: a secret or file that is not there, a name that cannot be
// made, no PKCS#11 library, no room on the disk.
func (p *Program) prepare() error {
	if err := identity.Ready(p.cfg, p.cfg.LDevID.Enroll, p.files); err != nil {
		return err
	}
	if _, err := p.subject(); err != nil {
		return err
	}
	if _, err := p.module(); err != nil {
		return err
	}
	return p.files.Room(room)
}

// room is more than a run writes: PINs, certificates, and a store of 28 KiB with
// its journal.
const room = 64 << 10

// parent is the SRK as the parent of others.
func (p *Program) parent() tpm.Parent { return tpm.Parent{Key: p.srk} }
