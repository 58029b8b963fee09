// Package tpm does with a TPM 2.0 what the device programs need, over go-tpm:
// persistent keys, NV indices, sessions and a [crypto.Signer].
//
// The seam to the outside is go-tpm's one-method transport: retry, counting
// and fault injection are wrappers of it, and tests run on a real software
// TPM. Commands that go-tpm does not know are in raw.go, on the same seam.
//
// # What a bus sees
//
// A TPM is a chip on a bus that somebody may tap, or sit on. Once [TPM.SaltTo]
// has been called, values that must stay secret (authorisation values, sealed
// data) only travel in sessions that are salted to that key and encrypted with
// AES-128-CFB, and answers that a decision rests on are checked by the HMAC of
// such a session (TPM 2.0 Library, Part 1, clauses 19 and 21). Before that they
// do not travel at all.
//
// An authorisation value that is used is proven by HMAC and never sent. What is
// heard of that would let somebody try guesses at leisure, so these sessions
// are salted as well: to that key, or before it is known to one that the TPM
// makes for it. Nobody vouches for that one, so a false TPM on the bus can try
// guesses all the same: the value should be random.
//
// The rest is no secret, and is believed for what it is compared with: a public
// area with its name, and with what was made here; a certificate with its
// issuer; a signature with the key. An answer that is none, or that is another
// than its header says, is an error.
//
// # Slots
//
// A TPM without a resource manager has three slots for transient objects and
// three for sessions, and a persistent key takes a slot while a command uses
// it. Everything loaded here is flushed as soon as it has been used, and at
// most one session stays open.
//
// Errors carry a class of pkg/step and name the handle or index they are about.
package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Secrets are the authorisation values of the hierarchies; nil is the empty
// value, which every hierarchy has until somebody sets another.
type Secrets struct {
	Owner, Endorsement, Lockout, Platform []byte
}

// TPM is an open TPM.
type TPM struct {
	transport transport.TPM
	close     func() error
	secrets   Secrets

	salt      *salt
	makeshift *Loaded      // salted to until salt is known; nil until needed
	bus       tpm2.Session // salted and encrypted, reused; nil until needed
	flush     func() error // ends bus

	made map[tpm2.TPMHandle][]byte // the names of the keys that were made persistent here
}

// Open opens a TPM: a character device, or "unix:" and the path of the data
// socket of a software TPM.
func Open(device string, secrets Secrets) (*TPM, error) {
	var t transport.TPMCloser
	var err error
	if path, ok := strings.CutPrefix(device, "unix:"); ok {
		t, err = openSocket(path)
	} else {
		t, err = linuxtpm.Open(device)
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, step.As(step.Permission, mayOpen, fmt.Errorf("cannot open the TPM %s: %w", device, err))
	case err != nil:
		return nil, step.Because(step.NoTPM, step.As(step.Unavailable,
			"is a TPM fitted and enabled? On a Raspberry Pi: dtparam=spi=on and dtoverlay=tpm-slb9670 in config.txt; [tpm] device names another one",
			fmt.Errorf("cannot open the TPM %s: %w", device, err)))
	}
	tpm := New(t, secrets)
	tpm.close = t.Close
	return tpm, nil
}

// mayOpen is the next action of who may not open the TPM.
const mayOpen = "run as root, or as a member of the group tss"

// New uses a TPM that is open.
func New(t transport.TPM, secrets Secrets) *TPM {
	return &TPM{
		transport: whole{retry{t}}, secrets: secrets, close: func() error { return nil },
		made: map[tpm2.TPMHandle][]byte{},
	}
}

// Close ends the sessions and closes the TPM.
func (t *TPM) Close() error {
	return errors.Join(t.EndSession(), t.dropMakeshift(), t.close())
}

// retry sends a command again while the TPM says that it is busy: these
// answers mean that the command was not executed (Part 2, clause 6.6.3).
type retry struct{ next transport.TPM }

// A TPM that runs its self test is busy for a second or two, and one that
// searches for an RSA key for longer; the kernel waits by itself.
const (
	busyPause = 20 * time.Millisecond
	busyLimit = 10 * time.Second
)

func (r retry) Send(command []byte) ([]byte, error) {
	pause := busyPause
	for begin := time.Now(); ; pause = min(2*pause, time.Second) {
		answer, err := r.next.Send(command)
		if err != nil || !busy(answer) || time.Since(begin) > busyLimit {
			return answer, err
		}
		time.Sleep(pause)
	}
}

// whole passes only answers on that have the size that they say they have.
type whole struct{ next transport.TPM }

func (w whole) Send(command []byte) ([]byte, error) {
	answer, err := w.next.Send(command)
	if err != nil {
		return nil, err
	}
	if len(answer) < headerSize {
		return nil, step.Fail(step.Temporary, "the TPM's answer has %d bytes, less than a header", len(answer))
	}
	if size := binary.BigEndian.Uint32(answer[2:]); int64(size) != int64(len(answer)) {
		return nil, step.Fail(step.Temporary, "the TPM's answer has %d bytes and says that it has %d", len(answer), size)
	}
	return answer, nil
}

// code is the return code of an answer.
func code(answer []byte) tpm2.TPMRC { return tpm2.TPMRC(binary.BigEndian.Uint32(answer[6:])) }

func busy(answer []byte) bool {
	if len(answer) < headerSize {
		return false
	}
	switch code(answer) {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting:
		return true
	}
	return false
}

// ErrNotFound: there is nothing at the handle or index.
var ErrNotFound = errors.New("nothing is there")

// fail wraps an error of the TPM: what could not be done, on what, and how the
// run goes on from it.
func fail(err error, format string, args ...any) error {
	wrapped := fmt.Errorf("cannot "+format+": %w", append(args, err)...)
	class, hint := step.Temporary, ""
	switch {
	case errors.Is(err, fs.ErrPermission):
		// A socket is opened with each command.
		class, hint = step.Permission, mayOpen
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "does the software TPM run? Where it is this project's: systemctl status tpm2cloud-swtpm"
	case errors.Is(err, tpm2.TPMRCLockout):
		hint = "the TPM counts wrong authorisations and blocks until its recovery time has passed, or until TPM2_DictionaryAttackLockReset"
	case Denied(err), errors.Is(err, tpm2.TPMRCAuthUnavailable), errors.Is(err, tpm2.TPMRCIntegrity), errors.Is(err, tpm2.TPMRCAttributes),
		errors.Is(err, tpm2.TPMRCNVAuthorization), errors.Is(err, tpm2.TPMRCNVLocked):
		class = step.Refused
	case errors.Is(err, tpm2.TPMRCHierarchy):
		class = step.Refused
		hint = "the firmware has closed this hierarchy; for the certificate of the IDevID: [idevid] storage = \"owner\""
	case errors.Is(err, tpm2.TPMRCNVSpace):
		class = step.Refused
		hint = "the TPM's memory is full: tpm2_getcap handles-persistent and handles-nv-index show what takes it"
	case errors.Is(err, tpm2.TPMRCObjectMemory), errors.Is(err, tpm2.TPMRCObjectHandles), errors.Is(err, tpm2.TPMRCSessionMemory),
		errors.Is(err, tpm2.TPMRCSessionHandles), errors.Is(err, tpm2.TPMRCContextGap), errors.Is(err, tpm2.TPMRCMemory):
		hint = "other programs keep objects or sessions in the TPM, or have left them there: tpm2_flushcontext -t, -l and -s remove them, and so does a restart"
	case errors.Is(err, ErrLacking), errors.Is(err, tpm2.TPMRCCurve), errors.Is(err, tpm2.TPMRCAsymmetric), errors.Is(err, tpm2.TPMRCKeySize),
		errors.Is(err, tpm2.TPMRCSymmetric), errors.Is(err, tpm2.TPMRCScheme), errors.Is(err, tpm2.TPMRCCommandCode):
		class = step.Refused
		hint = "this TPM lacks the algorithm or command; choose the other key algorithm (key = \"ecc-p256\" or \"rsa-2048\")"
	case errors.Is(err, tpm2.TPMRCInitialize):
		class = step.Refused
		hint = "nobody has started the TPM (TPM2_Startup): is the firmware or the software TPM set up to do it?"
	case errors.Is(err, tpm2.TPMRCFailure):
		class = step.Unavailable
		hint = "the TPM is in failure mode; a power cycle may help, else the chip is broken"
	}
	return step.As(class, hint, wrapped)
}

// Denied says whether the TPM refused an authorisation value.
func Denied(err error) bool {
	return errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth)
}

// failBy is fail for a command that a hierarchy authorises.
func failBy(hierarchy tpm2.TPMHandle, err error, format string, args ...any) error {
	name := map[tpm2.TPMHandle]string{
		tpm2.TPMRHOwner: "owner", tpm2.TPMRHEndorsement: "endorsement", tpm2.TPMRHLockout: "lockout", tpm2.TPMRHPlatform: "platform",
	}[hierarchy]
	wrapped := fail(err, format+" by the "+name+" hierarchy", args...)
	if Denied(err) {
		return step.Hint(wrapped, "somebody set an authorisation value for that hierarchy: [tpm] %s_auth names the secret", name)
	}
	return wrapped
}
