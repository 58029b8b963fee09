package ldevid

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/token"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// tokenStep makes the PKCS#11 token that other programs use the LDevID
// through. The library makes it (C_InitToken); then both its seals, the SO's and
// the user's, are ones of ours that no lockout of the TPM touches, because a
// power cut while one of the library's is in use counts like a wrong PIN. For
// the same reason C_InitPIN is not called: it uses one. The PINs are on disk
// before anything is sealed with them: a token whose PIN nobody knows is of no
// use to anybody.
type tokenStep struct{ *Program }

func (tokenStep) Name() string { return "token" }

// The store is shared with the agent's key service through a group.
const (
	shelfMode = fs.ModeSetgid | 0o770
	dbMode    = 0o660
)

// The files of the PINs.
const (
	fileUserPIN = "user-pin"
	fileSOPIN   = "so-pin"
)

// opened is what opening the user's seal gave: the key that wraps the
// authorisation values in the token, and the seal it came from.
type opened struct {
	seal        string
	wrappingKey []byte
}

func (s tokenStep) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{Object: fmt.Sprintf("token %q in %s", s.cfg.LDevID.Token.Label, s.shelf.Name())}
	if s.srk == nil {
		return step.WaitsFor(obs.Object, srk{}.Name()), nil
	}
	t, err := s.readToken()
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, token.ErrNoToken):
		return obs, nil
	case errors.Is(err, token.ErrUnclean):
		obs.State, obs.Detail = step.Partial, "left unclean by an interruption"
		return obs, nil
	case err == nil:
		s.token = t
		err = t.Primary.Check(uint32(tpm.HandleSRK), s.srk.Name)
	}
	if errors.Is(err, token.ErrOtherParent) {
		obs.State, obs.Detail = step.Conflict, err.Error()
		obs.Hint = fmt.Sprintf("the TPM was cleared, or the disk is from another board: nothing in the token can be used; move %s away to make a new one", s.shelf.Name())
		return obs, nil
	}
	if err != nil {
		return obs, step.As(step.Refused, "", err)
	}
	pin, err := s.pins.Read(fileUserPIN)
	if errors.Is(err, fs.ErrNotExist) {
		obs.State, obs.Detail = step.Conflict, "the token is not ours: its PIN is not on disk"
		obs.Hint = fmt.Sprintf("choose another [ldevid.token] label or store, or move %s away", s.shelf.Name())
		return obs, nil
	}
	if err != nil {
		return obs, err
	}
	switch {
	case len(t.Seals.UserPublic) == 0:
		obs.State, obs.Detail = step.Partial, "the user's PIN is not set"
	case !sealed(t.Seals.UserPublic) || !sealed(t.Seals.SOPublic):
		obs.State, obs.Detail = step.Partial, "the token is subject to the TPM's lockout"
	case !s.shared():
		obs.State, obs.Detail = step.Partial, "the store is not open to its group"
	default:
		if err := s.unseal(string(pin)); err != nil {
			return obs, err
		}
		obs.State, obs.Detail = step.Present, "the PIN opens it"
	}
	return obs, nil
}

func (p *Program) readToken() (*token.Token, error) {
	st, err := token.OpenStore(p.shelf.Name(), token.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	t, err := st.Token(p.cfg.LDevID.Token.Label)
	if !errors.Is(err, token.ErrNoToken) {
		return t, err
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

// sealed says whether a seal is of our template: not subject to the lockout.
func sealed(public []byte) bool {
	area, err := tpm2.Unmarshal[tpm2.TPM2BPublic](public)
	if err != nil {
		return false
	}
	contents, err := area.Contents()
	return err == nil && contents.ObjectAttributes.NoDA
}

// shared says whether the group can use the store.
func (p *Program) shared() bool {
	info, err := os.Stat(p.shelf.Path(token.DBName))
	return err == nil && info.Mode().Perm() == dbMode
}

// unseal opens the user's seal with the PIN, once for each seal: it proves the
// PIN, and what is in the seal is needed to link a key.
func (p *Program) unseal(pin string) error {
	seals := p.token.Seals
	if p.secret.wrappingKey != nil && p.secret.seal == string(seals.UserPublic) {
		return nil
	}
	key, err := p.tpm.Unseal(p.parent(), tpm.Blob{Public: seals.UserPublic, Private: seals.UserPrivate}, token.SealAuth(pin, seals.UserSalt))
	if err != nil {
		return fmt.Errorf("cannot open token %q with the PIN in %s: %w", p.token.Label, p.pins.Path(fileUserPIN), err)
	}
	p.secret = opened{string(seals.UserPublic), key}
	return nil
}

func (s tokenStep) Act(_ context.Context, obs step.Observation) error {
	if obs.State == step.Missing {
		if err := s.newPINs(); err != nil {
			return err
		}
		if err := s.shelf.Create(); err != nil {
			return err
		}
	}
	if err := token.Recover(s.shelf.Name()); err != nil {
		return step.As(step.Refused, "", err)
	}
	t, err := s.readToken()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, token.ErrNoToken) {
		err = s.library(func(m *token.Module) error {
			so, err := s.pins.Read(fileSOPIN)
			if err != nil {
				return err
			}
			return m.InitToken(s.cfg.LDevID.Token.Label, string(so))
		})
		if err != nil {
			return err
		}
		t, err = s.readToken()
	}
	if err != nil {
		return step.As(step.Refused, "", err)
	}
	s.token = t
	if err := s.share(); err != nil {
		return err
	}
	if sealed(t.Seals.UserPublic) && sealed(t.Seals.SOPublic) {
		return nil
	}
	return s.reseal()
}

// newPINs makes the PINs, where an earlier run has not.
func (p *Program) newPINs() error {
	for _, file := range []string{fileSOPIN, fileUserPIN} {
		if p.pins.Has(file) {
			continue
		}
		if err := p.pins.Write(file, []byte(randomHex(16)), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// library does something with the PKCS#11 library. Nothing of ours is loaded
// in the TPM meanwhile but one session: the library needs the other slots.
func (p *Program) library(do func(*token.Module) error) (err error) {
	path, found := p.cfg.Module()
	if !found {
		return step.As(step.Unavailable, "install libtpm2-pkcs11-1, or name the library in [ldevid.token] module",
			fmt.Errorf("cannot find the PKCS#11 module %s: %w", path, token.ErrNoModule))
	}
	// The library makes the store's files with what the umask leaves, and keyd
	// must be able to use them.
	defer syscall.Umask(syscall.Umask(0o007))
	m, err := token.Open(token.Options{Path: path, Store: p.shelf.Name(), TCTI: p.cfg.TCTI()})
	if err != nil {
		return step.As(step.Unavailable, "is libtpm2_pkcs11 there ([ldevid.token] module), and libtss2-tcti-device0?", err)
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	return do(m)
}

// share opens the store to the group of the token's users.
func (p *Program) share() error {
	path := p.shelf.Path(token.DBName)
	if err := os.Chmod(path, dbMode); err != nil {
		return fmt.Errorf("cannot open the store to its group: %w", err)
	}
	return nil
}

// reseal puts ones of ours in the place of both seals. A token without keys gets a
// new wrapping key; what wraps a key's value already is unsealed and kept.
func (p *Program) reseal() error {
	pin, err := p.pins.Read(fileUserPIN)
	if err != nil {
		return err
	}
	so, err := p.pins.Read(fileSOPIN)
	if err != nil {
		return err
	}
	st, err := token.OpenStore(p.shelf.Name(), token.ReadWrite)
	if err != nil {
		return err
	}
	defer st.Close()
	keys, err := st.Keys(p.token.ID, "")
	if err != nil {
		return err
	}
	old := p.token.Seals
	fresh := old
	if len(keys) > 0 {
		err = p.unseal(string(pin))
	} else {
		p.secret.wrappingKey, fresh.UserSalt = newWrappingKey(), newSalt()
	}
	if err != nil {
		return err
	}
	for _, seal := range []struct {
		public, private *[]byte
		auth            []byte
	}{
		{&fresh.UserPublic, &fresh.UserPrivate, token.SealAuth(string(pin), fresh.UserSalt)},
		{&fresh.SOPublic, &fresh.SOPrivate, token.SealAuth(string(so), fresh.SOSalt)},
	} {
		blob, err := p.tpm.Seal(p.parent(), tpm.SealTemplate(), tpm.Sensitive{Auth: seal.auth, Data: p.secret.wrappingKey})
		if err != nil {
			return fmt.Errorf("cannot seal the token's key: %w", err)
		}
		*seal.public, *seal.private = blob.Public, blob.Private
	}
	if err := st.ReplaceSeals(p.token.ID, old, fresh); err != nil {
		return err
	}
	p.secret.seal = string(fresh.UserPublic)
	return nil
}

// newWrappingKey is 32 random bytes in hexadecimal digits, as the library makes
// one.
func newWrappingKey() []byte { return []byte(randomHex(32)) }

// newSalt is as long as the library's.
func newSalt() string { return randomHex(32) }

// randomHex is n random bytes in hexadecimal digits.
func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}
