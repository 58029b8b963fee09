package token

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

// What goes wrong with the library, for errors.Is. The error itself is an [*Error],
// which has the return value as the library gave it.
var (
	// ErrNoModule: no libtpm2_pkcs11 where this architecture's would be, or it can't be
	// loaded.
	ErrNoModule = errors.New("no tpm2-pkcs11 module")

	// ErrModuleOpen: this process has the module open already. The C library has one
	// state per process; see [Open].
	ErrModuleOpen = errors.New("the module is open already")

	// ErrClosed: the Module or Signer was closed.
	ErrClosed = errors.New("closed already")

	// ErrNoToken: no token of that label.
	ErrNoToken = errors.New("no such token")

	// ErrTokenExists: a token of that label exists; labels are unique.
	ErrTokenExists = errors.New("a token of that label exists")

	// ErrNoKey: the token has no key of that label, or not both halves of it.
	ErrNoKey = errors.New("no such key")

	// ErrKeyExists: the token has a key of that label, or half of one.
	ErrKeyExists = errors.New("a key of that label exists")

	// ErrPINIncorrect: CKR_PIN_INCORRECT. Never try again with the same PIN. A TPM in
	// dictionary-attack lockout can give this answer to the right PIN too: look at
	// TPM_PT_LOCKOUT_COUNTER before believing it.
	ErrPINIncorrect = errors.New("wrong PIN")

	// ErrPINLocked: CKR_PIN_LOCKED, the TPM's lockout as the library sees it.
	ErrPINLocked = errors.New("PIN locked")

	// ErrPINNotInitialized: CKR_USER_PIN_NOT_INITIALIZED. The token has no user's seal
	// yet: [Store.ReplaceSeals] writes it. Only a login tells: the library always sets
	// CKF_USER_PIN_INITIALIZED.
	ErrPINNotInitialized = errors.New("user PIN not set")
)

// What goes wrong with the store, for errors.Is. An absent store is
// [io/fs.ErrNotExist].
var (
	// ErrUnclean: a migration or a transaction was cut. [Recover] mends it.
	ErrUnclean = errors.New("left unclean by an interruption")

	// ErrCorrupt: the store, or a row of it, is not what the library writes.
	ErrCorrupt = errors.New("corrupt")

	// ErrSealsChanged: the seals in the store are not those that the caller read.
	ErrSealsChanged = errors.New("the seals were changed by somebody else")

	// ErrOtherParent: the token was made under another storage key than the one in the
	// TPM (TPM cleared or replaced, or the disk is a copy): nothing in it can be loaded
	// any more.
	ErrOtherParent = errors.New("the token belongs to another storage key")

	// ErrUnsuitableKey: the TPM's key can't be used through PKCS#11 as it must be.
	ErrUnsuitableKey = errors.New("key unsuitable for PKCS#11")

	// ErrBusy: somebody else held the store's lock for too long.
	ErrBusy = errors.New("store is locked by another process")

	// ErrWrongKey: a wrapped auth value does not open with this wrapping key.
	ErrWrongKey = errors.New("wrong wrapping key or damaged text")
)

// RV is a return value of PKCS#11, printed by its name in the standard.
type RV uint

func (rv RV) String() string {
	// pkcs11.Error prints "pkcs11: 0xA0: CKR_PIN_INCORRECT"; its table of names is not
	// exported.
	s := pkcs11.Error(rv).Error()
	if i := strings.LastIndex(s, "CKR_"); i >= 0 {
		return s[i:]
	}
	return fmt.Sprintf("CKR 0x%X", uint(rv))
}

// Error is a refusal by the PKCS#11 library. It never has a PIN in it.
type Error struct {
	Op string // "log in to token \"edge\""
	RV RV
}

func (e *Error) Error() string { return "cannot " + e.Op + ": " + e.RV.String() }

// Is matches the sentinels of this package which stand for one return value.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrPINIncorrect:
		return e.RV == pkcs11.CKR_PIN_INCORRECT
	case ErrPINLocked:
		return e.RV == pkcs11.CKR_PIN_LOCKED
	case ErrPINNotInitialized:
		return e.RV == pkcs11.CKR_USER_PIN_NOT_INITIALIZED
	}
	return false
}

// wrap makes an *Error of what miekg/pkcs11 returned.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	if rv, ok := errors.AsType[pkcs11.Error](err); ok {
		return &Error{Op: op, RV: RV(rv)}
	}
	return fmt.Errorf("cannot %s: %w", op, err)
}
