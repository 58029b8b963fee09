package token

import (
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// What the library and other programs do with PINs, for the tests to hold ours
// against.

// makeToken makes a token as others do, with C_InitPIN.
func (m *Module) makeToken(label, soPIN, userPIN string) error {
	if err := m.InitToken(label, soPIN); err != nil {
		return err
	}
	return m.InitPIN(label, soPIN, userPIN)
}

// InitPIN sets the user's PIN as its SO, as other programs do.
func (m *Module) InitPIN(label, soPIN, userPIN string) error {
	if userPIN == "" {
		return fmt.Errorf("cannot set the user PIN of token %q: it is empty", label)
	}
	return m.session(label, pkcs11.CKU_SO, soPIN, func(sh pkcs11.SessionHandle) error {
		return wrap(fmt.Sprintf("set the user PIN of token %q", label), m.ctx.InitPIN(sh, userPIN))
	})
}

// CheckPIN logs in as the user of a token and out again.
func (m *Module) CheckPIN(label, userPIN string) error {
	return m.session(label, pkcs11.CKU_USER, userPIN, func(pkcs11.SessionHandle) error { return nil })
}

// session runs f in a session of its own, logged in.
func (m *Module) session(label string, user uint, pin string, f func(pkcs11.SessionHandle) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	id, sh, err := m.login(label, user, pin)
	if err != nil {
		return err
	}
	err = f(sh)
	return errors.Join(err, m.logout(id, sh))
}
