package ldevid

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/token"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// The PINs and what they open.

// The files of the PINs' directory.
const (
	fileUserPIN = "user-pin"
	fileSOPIN   = "so-pin"
	fileNote    = "tokens.json" // the tokens that have these PINs
)

// tokenName is an entry of the note.
type tokenName struct {
	Store string `json:"store"`
	Label string `json:"label"`
}

func (p *Program) tokenName() tokenName {
	return tokenName{p.cfg.LDevID.Token.Store, p.cfg.LDevID.Token.Label}
}

// readNote reads the tokens that were made here.
func (p *Program) readNote() (list []tokenName, err error) {
	data, err := p.pins.Read(fileNote)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, step.As(step.Permission, "run as root", err)
	case err != nil:
		return nil, err
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, step.Fail(step.Refused, "cannot use %s: %w", p.pins.Path(fileNote), err)
	}
	return list, nil
}

// noted says whether the token was made here.
func (p *Program) noted() (bool, error) {
	list, err := p.readNote()
	return slices.Contains(list, p.tokenName()), err
}

// note says, before it is done, that the token is made here.
func (p *Program) note() error {
	list, err := p.readNote()
	if err != nil || slices.Contains(list, p.tokenName()) {
		return err
	}
	data, err := json.Marshal(append(list, p.tokenName()))
	if err != nil {
		return err
	}
	return p.pins.Write(fileNote, append(data, '\n'), 0o600)
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

// sealed says whether a seal is of our template: not subject to the lockout.
func sealed(public []byte) bool {
	area, err := tpm2.Unmarshal[tpm2.TPM2BPublic](public)
	if err != nil {
		return false
	}
	contents, err := area.Contents()
	return err == nil && contents.ObjectAttributes.NoDA
}

// opened is what opening the user's seal gave: the key that wraps the
// authorisation values in the token, and the seal it came from.
type opened struct {
	seal        string
	wrappingKey []byte
}

// unseal opens the user's seal with the PIN, once for each seal: it proves the
// PIN, and what is in the seal is needed to link a key.
func (p *Program) unseal() error {
	seals := p.token.Seals
	if p.secret.wrappingKey != nil && p.secret.seal == string(seals.UserPublic) {
		return nil
	}
	pin, err := p.pins.Read(fileUserPIN)
	if err != nil {
		return err
	}
	key, err := p.tpm.Unseal(p.parent(), tpm.Blob{Public: seals.UserPublic, Private: seals.UserPrivate}, token.SealAuth(string(pin), seals.UserSalt))
	if err != nil {
		return fmt.Errorf("cannot open token %q with the PIN in %s: %w", p.token.Label, p.pins.Path(fileUserPIN), err)
	}
	p.secret = opened{string(seals.UserPublic), key}
	return nil
}

// seal gives a token that holds nothing yet a wrapping key, and seals it twice,
// with the user's PIN and with the SO's.
func (p *Program) seal() error {
	user, err := p.pins.Read(fileUserPIN)
	if err != nil {
		return err
	}
	so, err := p.pins.Read(fileSOPIN)
	if err != nil {
		return err
	}
	// As long as the library's own: 32 bytes, in hexadecimal digits.
	wrappingKey := []byte(randomHex(32))
	old := p.token.Seals
	fresh := old
	// The library has made a seal of the SO's PIN as well, for which it believed
	// what the bus said of the SRK. Nothing of that one is used again.
	fresh.UserSalt, fresh.SOSalt = randomHex(32), randomHex(32)
	for _, seal := range []struct {
		public, private *[]byte
		auth            []byte
	}{
		{&fresh.UserPublic, &fresh.UserPrivate, token.SealAuth(string(user), fresh.UserSalt)},
		{&fresh.SOPublic, &fresh.SOPrivate, token.SealAuth(string(so), fresh.SOSalt)},
	} {
		blob, err := p.tpm.Seal(p.parent(), tpm.SealTemplate(), tpm.Sensitive{Auth: seal.auth, Data: wrappingKey})
		if err != nil {
			return fmt.Errorf("cannot seal the token's key: %w", err)
		}
		*seal.public, *seal.private = blob.Public, blob.Private
	}
	st, err := token.OpenStore(p.shelf.Name(), token.ReadWrite)
	if err != nil {
		return err
	}
	defer st.Close()
	if err := st.ReplaceSeals(p.token.ID, old, fresh); err != nil {
		return err
	}
	p.secret = opened{string(fresh.UserPublic), wrappingKey}
	return nil
}

// randomHex is n random bytes in hexadecimal digits.
func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}
