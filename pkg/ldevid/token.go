package ldevid

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/token"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// tokenStep makes the PKCS#11 token that other programs use the LDevID
// through. The library makes it (C_InitToken); then both its seals, the SO's and
// the user's, are ones of ours that no lockout of the TPM touches, because a
// power cut while one of the library's is in use counts like a wrong PIN. For
// the same reason C_InitPIN is not called: it uses one.
//
// A token is ours when a note beside the PINs says so, which is on disk before
// the library makes the token. No PIN is tried on anybody else's.
type tokenStep struct{ *Program }

func (tokenStep) Name() string { return "token" }

// The store is shared with the agent's key service through a group.
const (
	shelfMode = fs.ModeSetgid | 0o770
	dbMode    = 0o660
)

func (s tokenStep) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{Object: fmt.Sprintf("token %q in %s", s.cfg.LDevID.Token.Label, s.shelf.Name())}
	switch {
	case s.ekName == nil:
		// Before the EK is known, nothing secret may cross the bus.
		return step.WaitsFor(obs.Object, idevid{}.Name()), nil
	case s.srk == nil:
		return step.WaitsFor(obs.Object, srk{}.Name()), nil
	}
	t, err := s.readToken()
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, token.ErrNoToken):
		return obs, nil
	case errors.Is(err, token.ErrUnclean):
		obs.State, obs.Detail = step.Partial, "left unclean by an interruption"
		return obs, nil
	case s.stillborn(err):
		obs.State, obs.Detail = step.Partial, "spoiled before there was a token in it"
		return obs, nil
	case errors.Is(err, token.ErrOtherParent):
		obs.State, obs.Detail, obs.Reason = step.Conflict, err.Error(), step.OtherTPM
		obs.Hint = fmt.Sprintf("the TPM was cleared, or the disk is from another board: nothing in the token can be used; move %s away to make a new one", s.shelf.Name())
		return obs, nil
	case err != nil:
		return obs, step.As(step.Refused, "", s.damaged(err))
	}
	s.token = t
	why, err := s.foreign()
	if err != nil {
		return obs, s.damaged(err)
	}
	if why != "" {
		obs.State, obs.Detail = step.Conflict, "the token is not ours: "+why
		obs.Hint = fmt.Sprintf("choose another [ldevid.token] label or store, or move %s away", s.shelf.Name())
		return obs, nil
	}
	switch {
	case len(t.Seals.UserPublic) == 0:
		obs.State, obs.Detail = step.Partial, "the user's PIN is not set"
	case !s.shared():
		obs.State, obs.Detail = step.Partial, "the store is not open to its group"
	case token.LeftLocked(s.shelf.Name()):
		obs.State, obs.Detail = step.Partial, "an interruption has left a lock, which keeps the store's group out"
	default:
		err := s.unseal()
		if tpm.Denied(err) {
			obs.State, obs.Detail = step.Conflict, "the PIN on disk does not open it"
			obs.Hint = fmt.Sprintf("restore %s, or move %s away to make a new token", s.pins.Path(fileUserPIN), s.shelf.Name())
			return obs, nil
		}
		if err != nil {
			return obs, err
		}
		obs.State, obs.Detail = step.Present, "the PIN opens it"
	}
	return obs, nil
}

// damaged adds to an error of a store that is damaged what helps. Nobody can mend it,
// and what nobody can read may be somebody else's: it is not thrown away by itself.
func (p *Program) damaged(err error) error {
	if !errors.Is(err, token.ErrCorrupt) {
		return err
	}
	return step.As(step.Refused, fmt.Sprintf("move %s away: a new token and a new LDevID key are made then; what others keep there is lost without a copy", p.shelf.Name()), err)
}

// foreign says why the token cannot be ours, or nothing.
func (p *Program) foreign() (string, error) {
	noted, err := p.noted()
	if err != nil {
		return "", err
	}
	seals := p.token.Seals
	switch {
	case !noted:
		return "nothing says that it was made here", nil
	case !p.pins.Has(fileUserPIN) || !p.pins.Has(fileSOPIN):
		return "its PINs are not on disk", nil
	case len(seals.UserPublic) == 0 && sealed(seals.SOPublic), len(seals.UserPublic) != 0 && !(sealed(seals.UserPublic) && sealed(seals.SOPublic)):
		return "its PINs were set by somebody else", nil
	case len(seals.UserPublic) == 0:
		empty, err := p.emptyToken()
		if err != nil || empty {
			return "", err
		}
		return "there is something in it that somebody else has put there", nil
	}
	return "", nil
}

func (p *Program) emptyToken() (bool, error) {
	st, err := token.OpenStore(p.shelf.Name(), token.ReadOnly)
	if err != nil {
		return false, err
	}
	defer st.Close()
	return st.Empty(p.token.ID)
}

func (p *Program) readToken() (*token.Token, error) {
	// The group may write there, and SQLite follows links.
	if err := p.shelf.Plain(token.DBName); err != nil {
		return nil, err
	}
	st, err := token.OpenStore(p.shelf.Name(), token.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	t, err := st.Token(p.cfg.LDevID.Token.Label)
	if err == nil {
		return t, t.Primary.Check(uint32(tpm.HandleSRK), p.srk.Name)
	}
	if !errors.Is(err, token.ErrNoToken) {
		return nil, err
	}
	// The library would make the token under the store's first storage key,
	// without a look at the TPM.
	primaries, perr := st.Primaries()
	if perr != nil {
		return nil, perr
	}
	for _, primary := range primaries {
		if perr := primary.Check(uint32(tpm.HandleSRK), p.srk.Name); perr != nil {
			return nil, perr
		}
	}
	return nil, err
}

// stillborn says whether an error is of a store that the library began here and
// in which there is no token, nor ever can be: it has noted another storage key
// than the TPM's, because that was what the bus told it.
func (p *Program) stillborn(err error) bool {
	if !errors.Is(err, token.ErrCorrupt) && !errors.Is(err, token.ErrOtherParent) {
		return false
	}
	if noted, err := p.noted(); err != nil || !noted {
		return false
	}
	st, err := token.OpenStore(p.shelf.Name(), token.ReadOnly)
	if err != nil {
		return false
	}
	defer st.Close()
	labels, err := st.Labels()
	return err == nil && len(labels) == 0
}

// shared says whether the group can use the store.
func (p *Program) shared() bool {
	info, err := os.Stat(p.shelf.Path(token.DBName))
	return err == nil && info.Mode().Perm() == dbMode
}

func (s tokenStep) Act(context.Context, step.Observation) error {
	if err := s.prepare(); err != nil {
		return err
	}
	if err := token.Recover(s.shelf.Name()); err != nil {
		return step.As(step.Refused, "", s.damaged(err))
	}
	t, err := s.readToken()
	if s.stillborn(err) {
		if err := s.shelf.Remove(token.DBName); err != nil {
			return err
		}
		t, err = s.readToken()
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, token.ErrNoToken) {
		if err = s.make(); err != nil {
			return err
		}
		t, err = s.readToken()
	}
	if err != nil {
		return step.As(step.Refused, "", s.damaged(err))
	}
	s.token = t
	if err := s.share(); err != nil {
		return err
	}
	if len(t.Seals.UserPublic) == 0 {
		return s.seal()
	}
	return nil
}

// make has the library make the token.
func (p *Program) make() error {
	if err := p.tryParent(); err != nil {
		return err
	}
	if err := p.newPINs(); err != nil {
		return err
	}
	if err := p.note(); err != nil {
		return err
	}
	if err := p.shelf.Create(); err != nil {
		return err
	}
	so, err := p.pins.Read(fileSOPIN)
	if err != nil {
		return err
	}
	return p.library(func(m *token.Module) error {
		return m.InitToken(p.cfg.LDevID.Token.Label, string(so))
	})
}

// tryParent finds out whether an adopted SRK has the empty authorisation value
// that the library counts on, by sealing something that is thrown away. The
// library would try it again and again, which locks the TPM.
func (p *Program) tryParent() error {
	if p.srk.Matches(tpm.SRKTemplate) {
		return nil // ours, or as good
	}
	_, err := p.tpm.Seal(p.parent(), tpm.SealTemplate(), tpm.Sensitive{Data: []byte("a try")})
	if tpm.Denied(err) {
		return step.As(step.Refused, "whoever made that key knows its authorisation value; the PKCS#11 library can only use one without",
			fmt.Errorf("cannot use the storage root key at %#x: %w", uint32(tpm.HandleSRK), err))
	}
	return err
}

// module is the path of the PKCS#11 library.
func (p *Program) module() (string, error) {
	path, found := p.cfg.Module()
	if !found {
		return "", step.As(step.Unavailable, "install libtpm2-pkcs11-1, or name the library in [ldevid.token] module",
			fmt.Errorf("cannot find the PKCS#11 module %s: %w", path, token.ErrNoModule))
	}
	return path, nil
}

// library does something with the PKCS#11 library. Nothing of ours is loaded
// in the TPM meanwhile but one session: the library needs the other slots.
func (p *Program) library(do func(*token.Module) error) (err error) {
	path, err := p.module()
	if err != nil {
		return err
	}
	// The library makes the store's files with what the umask leaves, and keyd
	// must be able to use them.
	defer syscall.Umask(syscall.Umask(0o007))
	m, err := token.Open(token.Options{Path: path, Store: p.shelf.Name(), TCTI: p.cfg.TCTI()})
	if err != nil {
		return step.As(step.Unavailable, "is libtpm2_pkcs11 there ([ldevid.token] module), and libtss2-tcti-device0?", p.roomFor(err))
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	// Tried once: what the library says tells little, and each try may count as
	// a wrong PIN.
	return step.As(step.Unavailable, "see what the PKCS#11 library says above; is the TPM in lockout (tpm2_getcap properties-variable)?", p.roomFor(do(m)))
}

// enoughRoom is more than the library's store takes, with its journal: 28 KiB of
// tables, and a copy of what a transaction changes.
const enoughRoom = 128 << 10

// roomFor adds to an error of the library what it does not say itself: that the
// disk is full. Room that somebody makes is worth another try.
func (p *Program) roomFor(err error) error {
	var disk syscall.Statfs_t
	if err == nil || syscall.Statfs(p.shelf.Name(), &disk) != nil {
		return err
	}
	if disk.Bavail*uint64(disk.Bsize) >= enoughRoom && (disk.Files == 0 || disk.Ffree > 0) {
		return err
	}
	return step.As(step.Temporary, "make room on the disk", fmt.Errorf("cannot keep the token in %s: %w (%w)", p.shelf.Name(), syscall.ENOSPC, err))
}

// share opens the store to the group of the token's users.
func (p *Program) share() error {
	err := p.shelf.Chmod(token.DBName, dbMode)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("cannot open the store to its group: %w", err)
	if errors.Is(err, fs.ErrPermission) {
		// The library, of another version, made it anew as the user of the agent's keyd.
		return step.As(step.Permission, "another user has made "+p.shelf.Path(token.DBName)+"; give it back: chown tpm2cloud:tpm2cloud-token and chmod 0660", err)
	}
	return err
}
