package token

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/miekg/pkcs11"
)

// Options say which library to open on which store and which TPM.
type Options struct {
	// Path of libtpm2_pkcs11; see [Find].
	Path string

	// Store is the directory of the store. It must exist: a missing one the library
	// would make with a mode of its own choice. A missing store in it is made.
	Store string

	// TCTI is how the TPM is reached, in tpm2-tss's notation: "device:/dev/tpmrm0",
	// "swtpm:path=/run/swtpm/tpm.sock". Empty leaves it to the environment and to
	// tpm2-tss.
	TCTI string
}

// Module is libtpm2_pkcs11, initialised on one store and one TPM. Its methods and those
// of its Signers can be called from any goroutine; they take turns, and none can be
// interrupted.
type Module struct {
	mu      sync.Mutex
	ctx     *pkcs11.Ctx   // nil once closed
	logins  map[uint]bool // by slot
	restore func()
}

// process is locked while a Module is open. It is the package's one global: the C
// library has its state, its store and its TPM connection once per process.
var process sync.Mutex

// Open loads and initialises the library. A second Open before Close is
// [ErrModuleOpen].
//
// The library takes its store and TCTI from the environment, so Open sets
// TPM2_PKCS11_STORE and TPM2_PKCS11_TCTI of this process, and Close puts back what was
// there. Setting a variable while C code of another thread reads one is a race of
// libc's: open before other C code runs.
//
// Each Open costs the TPM eleven commands: open rarely, and close before something
// else needs the TPM's few slots.
func Open(o Options) (_ *Module, err error) {
	store, err := filepath.Abs(o.Store)
	if err != nil {
		return nil, fmt.Errorf("cannot open the PKCS#11 module: %w", err)
	}
	if fi, err := os.Stat(store); err != nil {
		return nil, fmt.Errorf("cannot open the PKCS#11 module: %w", err)
	} else if !fi.IsDir() {
		return nil, fmt.Errorf("cannot open the PKCS#11 module: %w", &fs.PathError{Op: "open", Path: store, Err: errors.New("not a directory")})
	}
	// The library says only CKR_GENERAL_ERROR, or goes on without a store.
	if s, err := OpenStore(store, ReadOnly); err == nil {
		s.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot open the PKCS#11 module: %w", err)
	}

	if !process.TryLock() {
		return nil, fmt.Errorf("cannot open the PKCS#11 module: %w", ErrModuleOpen)
	}
	restore := setenv(o.TCTI, store)
	ctx := pkcs11.New(o.Path)
	if ctx == nil {
		restore()
		process.Unlock()
		return nil, fmt.Errorf("cannot open the PKCS#11 module: %w: %s can't be loaded", ErrNoModule, o.Path)
	}
	m := &Module{ctx: ctx, logins: make(map[uint]bool), restore: restore}
	if err := ctx.Initialize(); err != nil {
		m.unload()
		return nil, wrap("initialise the PKCS#11 module "+o.Path, err)
	}
	return m, nil
}

// setenv prepares the environment for the C library; os.Setenv reaches C's own in a cgo
// program. The function returned undoes it.
func setenv(tcti, store string) (restore func()) {
	vars := map[string]string{"TPM2_PKCS11_STORE": store}
	if tcti != "" {
		vars["TPM2_PKCS11_TCTI"] = tcti
	}
	// tpm2-tss writes several lines to standard error for each refusal of the TPM, a
	// wrong PIN for one: our typed error says it. Who wants them sets TSS2_LOG. The
	// lines that the PKCS#11 library itself writes ("ERROR: ...") can't be turned off.
	if _, ok := os.LookupEnv("TSS2_LOG"); !ok {
		vars["TSS2_LOG"] = "all+NONE"
	}
	var undo []func()
	for k, v := range vars {
		if old, ok := os.LookupEnv(k); ok {
			undo = append(undo, func() { os.Setenv(k, old) })
		} else {
			undo = append(undo, func() { os.Unsetenv(k) })
		}
		os.Setenv(k, v)
	}
	return func() {
		for _, f := range undo {
			f()
		}
	}
}

// Close ends all sessions, which logs out, flushes what the library has in the TPM, and
// unloads the library. A second Close does nothing.
func (m *Module) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx == nil {
		return nil
	}
	err := m.ctx.Finalize()
	m.unload()
	return wrap("close the PKCS#11 module", err)
}

func (m *Module) unload() {
	m.ctx.Destroy()
	m.ctx = nil
	m.restore()
	process.Unlock()
}

// InitToken makes a token with an SO PIN, and the store if there is none
// (C_InitToken). It needs the storage key at 0x81000001 to be there: the library
// takes it (or the store's first, see [Store.Primaries]), and where there is none makes
// one without noDA.
//
// There is no C_InitPIN: the user's seal is written by [Store.ReplaceSeals], with the
// SO's. The library would make it with dictionary-attack protection, unseal the SO's
// for that, and so leave a failed authorization behind if the power is cut in this boot.
//
// A token of that label is [ErrTokenExists].
func (m *Module) InitToken(label, soPIN string) error {
	if err := checkLabel(label); err != nil {
		return fmt.Errorf("cannot make token %q: %w", label, err)
	}
	if soPIN == "" {
		return fmt.Errorf("cannot make token %q: the PIN is empty", label)
	}
	return m.initToken(label, soPIN)
}

// checkLabel: 32 bytes is what PKCS#11 has, blanks pad it, and keyd compares it
// trimmed.
func checkLabel(label string) error {
	if label == "" || len(label) > 32 {
		return errors.New("a label has 1 to 32 bytes")
	}
	if strings.TrimSpace(label) != label || strings.ContainsRune(label, 0) {
		return errors.New("a label does not begin or end with a blank")
	}
	return nil
}

func (m *Module) initToken(label, soPIN string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	op := fmt.Sprintf("make token %q", label)
	_, exists, err := m.find(op, func(s slot) bool { return s.token && s.label == label })
	if err != nil {
		return err
	}
	if exists {
		return fmt.Errorf("cannot %s: %w", op, ErrTokenExists)
	}
	free, ok, err := m.find(op, func(s slot) bool { return !s.token })
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("cannot %s: the store is full", op) // 255 tokens
	}
	return wrap(op, m.ctx.InitToken(free.id, soPIN, label))
}

// login opens a session and logs in. PKCS#11 knows one login for all sessions of a
// token, and would not look at the PIN of a second one: so there is none. m.mu is held.
func (m *Module) login(label string, user uint, pin string) (id uint, sh pkcs11.SessionHandle, err error) {
	if id, err = m.slot(label); err != nil {
		return 0, 0, err
	}
	if m.logins[id] {
		return 0, 0, fmt.Errorf("cannot log in to token %q: its other Signer is not closed", label)
	}
	sh, err = m.ctx.OpenSession(id, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return 0, 0, wrap(fmt.Sprintf("open a session with token %q", label), err)
	}
	if err := m.ctx.Login(sh, user, pin); err != nil {
		m.ctx.CloseSession(sh)
		return 0, 0, wrap(fmt.Sprintf("log in to token %q", label), err)
	}
	m.logins[id] = true
	return id, sh, nil
}

func (m *Module) logout(id uint, sh pkcs11.SessionHandle) error {
	delete(m.logins, id)
	return errors.Join(
		wrap("log out", m.ctx.Logout(sh)),
		wrap("close the session", m.ctx.CloseSession(sh)))
}

type slot struct {
	id    uint
	token bool // initialised
	label string
}

// find returns the first slot that matches. It reads them anew, because their numbers
// change when a token is made, and it looks at none beyond the match: after a
// C_InitToken in which the TPM failed late, the library has a new free slot at the end
// in which C_GetTokenInfo crashes.
func (m *Module) find(op string, match func(slot) bool) (slot, bool, error) {
	if m.ctx == nil {
		return slot{}, false, fmt.Errorf("cannot %s: %w", op, ErrClosed)
	}
	ids, err := m.ctx.GetSlotList(true)
	if err != nil {
		return slot{}, false, wrap(op, err)
	}
	for _, id := range ids {
		info, err := m.ctx.GetTokenInfo(id)
		if err != nil {
			return slot{}, false, wrap(op, err)
		}
		s := slot{
			id:    id,
			token: info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0,
			label: info.Label,
		}
		if match(s) {
			return s, true, nil
		}
	}
	return slot{}, false, nil
}

func (m *Module) slot(label string) (uint, error) {
	op := fmt.Sprintf("find token %q", label)
	s, ok, err := m.find(op, func(s slot) bool { return s.token && s.label == label })
	if err == nil && !ok {
		err = fmt.Errorf("cannot %s: %w", op, ErrNoToken)
	}
	return s.id, err
}
