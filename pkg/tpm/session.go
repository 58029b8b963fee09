package tpm

import (
	"errors"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// nonceSize is that of the sessions' nonces, in bytes.
const nonceSize = 16

// salt is the key that sessions are salted to.
type salt struct {
	handle tpm2.TPMHandle
	public tpm2.TPMTPublic
}

// SaltTo makes later sessions encrypt their salt to the public key given,
// which the TPM must hold the private part of at the handle. The caller
// vouches for the public key: it is the EK's, equal to its certificate.
func (t *TPM) SaltTo(handle tpm2.TPMHandle, public tpm2.TPMTPublic) error {
	if err := errors.Join(t.EndSession(), t.dropMakeshift()); err != nil {
		return err
	}
	t.salt = &salt{handle, public}
	return nil
}

// Prove proves that the private part of the public key given to SaltTo is in
// this TPM: only that key's holder can find the salt of a session, and so the
// HMAC over its answer to a harmless command.
func (t *TPM) Prove() error {
	if err := t.hidden(); err != nil {
		return err
	}
	_, err := protected(t, tpm2.Hash{
		Data:      tpm2.TPM2BMaxBuffer{Buffer: []byte("possession")},
		HashAlg:   tpm2.TPMAlgSHA256,
		Hierarchy: tpm2.TPMRHNull,
	})
	if err != nil {
		return fail(err, "prove that the key at %#x is in this TPM", uint32(t.salt.handle))
	}
	return nil
}

// EndSession flushes the session that is kept open between commands.
func (t *TPM) EndSession() error {
	if t.flush == nil {
		return nil
	}
	flush := t.flush
	t.bus, t.flush = nil, nil
	if err := flush(); err != nil {
		return fail(err, "flush a session")
	}
	return nil
}

// protect is the session that goes with a command whose first parameter is a
// sized buffer: it hides that parameter and authenticates the answer. The
// answers hold nothing secret, except Unseal's, which has a session of its
// own. Without a key to salt to there is none.
func (t *TPM) protect() ([]tpm2.Session, error) {
	if t.salt == nil {
		return nil, nil
	}
	if t.bus == nil {
		s, _, err := tpm2.HMACSession(t.transport, tpm2.TPMAlgSHA256, nonceSize, t.encrypted(hideCommand)...)
		if err != nil {
			return nil, fail(err, "start a session salted to %#x", uint32(t.salt.handle))
		}
		// An answer that was changed on its way may say that the session has ended,
		// and go-tpm believes that before it checks: the handle is remembered here.
		handle := s.Handle()
		t.bus, t.flush = s, func() error {
			_, err := tpm2.FlushContext{FlushHandle: handle}.Execute(t.transport)
			return err
		}
	}
	return []tpm2.Session{t.bus}, nil
}

// protected executes a command in that session. One whose command failed is not
// used again: where an answer was lost, the TPM's nonce is not the one that we
// know, and every later command would fail.
func protected[R any](t *TPM, command interface {
	Execute(transport.TPM, ...tpm2.Session) (R, error)
}) (R, error) {
	sessions, err := t.protect()
	if err != nil {
		var none R
		return none, err
	}
	rsp, err := command.Execute(t.transport, sessions...)
	if err != nil && t.flush != nil {
		_ = t.flush() // the command's error is the one to tell
		t.bus, t.flush = nil, nil
	}
	return rsp, err
}

// hidden demands that there is a key to hide secrets from the bus with.
func (t *TPM) hidden() error {
	if t.salt == nil {
		return step.Fail(step.Software, "cannot send a secret to the TPM in clear: no key was named to hide it with")
	}
	return nil
}

// encrypted are the options of a session whose first parameter, of the command
// or of the answer, only the salt's key can read.
func (t *TPM) encrypted(hide tpm2.AuthOption) []tpm2.AuthOption {
	if t.salt == nil {
		return nil
	}
	return []tpm2.AuthOption{tpm2.Salted(t.salt.handle, t.salt.public), hide}
}

var (
	hideCommand = tpm2.AESEncryption(128, tpm2.EncryptIn)
	hideAnswer  = tpm2.AESEncryption(128, tpm2.EncryptOut)
)

// authorize is the authorisation with a value: none needs no session, any
// other is proven by HMAC, so that it never crosses the bus.
func (t *TPM) authorize(value []byte) tpm2.Session {
	if len(value) == 0 {
		return tpm2.PasswordAuth(nil)
	}
	return &proof{tpm: t, value: value}
}

// proof is a session that proves a value once. It is salted, so that nobody who
// listens can try guesses on what he has heard; what to is decided when it is
// started.
type proof struct {
	tpm2.Session
	tpm   *TPM
	value []byte
}

func (p *proof) Init(tpm transport.TPM) error {
	if p.Session == nil {
		to, err := p.tpm.saltForProof()
		if err != nil {
			return err
		}
		p.Session = tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, tpm2.Salted(to.handle, to.public), tpm2.Auth(p.value))
	}
	return p.Session.Init(tpm)
}

// saltForProof is the key that was named, or before that one that the TPM makes
// in the null hierarchy, which needs no authorisation.
func (t *TPM) saltForProof() (*salt, error) {
	if t.salt != nil {
		return t.salt, nil
	}
	if t.makeshift == nil {
		rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHNull, Auth: tpm2.PasswordAuth(nil)}, InPublic: tpm2.New2B(SRKTemplate)}.Execute(t.transport)
		if err != nil {
			return nil, fail(err, "make a key to hide the proof of an authorisation value with")
		}
		if t.makeshift, err = t.loaded(rsp.ObjectHandle, rsp.Name, rsp.OutPublic); err != nil {
			return nil, err
		}
	}
	return &salt{t.makeshift.Handle, t.makeshift.Public}, nil
}

// dropMakeshift frees the slot of the key that saltForProof has made.
func (t *TPM) dropMakeshift() error {
	if t.makeshift == nil {
		return nil
	}
	key := t.makeshift
	t.makeshift = nil
	return key.Flush()
}

// hierarchy authorises a command by a hierarchy.
func (t *TPM) hierarchy(h tpm2.TPMHandle) tpm2.AuthHandle {
	var value []byte
	switch h {
	case tpm2.TPMRHOwner:
		value = t.secrets.Owner
	case tpm2.TPMRHEndorsement:
		value = t.secrets.Endorsement
	case tpm2.TPMRHLockout:
		value = t.secrets.Lockout
	case tpm2.TPMRHPlatform:
		value = t.secrets.Platform
	}
	return tpm2.AuthHandle{Handle: h, Name: tpm2.HandleName(h), Auth: t.authorize(value)}
}

// policyC is the second branch of the authorisation policy of the EK templates
// in the high range: PolicyAuthorizeNV of the index 0x01C07F01 (EK Credential
// Profile 2.5, B.6.2, "PolicyC"). Its SHA-256 and [policyB] prove each other
// in a test: one of them mistyped, and the OR of the branches differs.
var policyC = []byte{
	0x37, 0x67, 0xe2, 0xed, 0xd4, 0x3f, 0xf4, 0x5a, 0x3a, 0x7e, 0x1e, 0xae, 0xfc, 0xef, 0x78, 0x64,
	0x3d, 0xca, 0x96, 0x46, 0x32, 0xe7, 0xaa, 0xd8, 0x2c, 0x67, 0x3a, 0x30, 0xd8, 0x63, 0x3f, 0xde,
}

// policyB is the authorisation policy of those templates: PolicyOR of policyA
// and policyC.
var policyB = []byte{
	0xca, 0x3d, 0x0a, 0x99, 0xa2, 0xb9, 0x39, 0x06, 0xf7, 0xa3, 0x34, 0x24, 0x14, 0xef, 0xcf, 0xb3,
	0xa3, 0x85, 0xd4, 0x4c, 0xd1, 0xfd, 0x45, 0x90, 0x89, 0xd1, 0x9b, 0x50, 0x71, 0xc0, 0xb7, 0xa0,
}

// policyA is PolicySecret(TPM_RH_ENDORSEMENT), the policy of the EK templates
// in the low range.
func policyA() []byte { return tpm2.RSAEKTemplate.AuthPolicy.Buffer }

// endorsementPolicy satisfies the policy of an EK for one command: the
// knowledge of the endorsement hierarchy's authorisation value, proven inside
// the policy session. It is made anew for each command, because a policy
// session is spent by its use.
func (t *TPM) endorsementPolicy(parent tpm2.TPMTPublic) (tpm2.Session, error) {
	high := false
	switch string(parent.AuthPolicy.Buffer) {
	case string(policyA()):
	case string(policyB):
		high = true
	default:
		return nil, step.Fail(step.Refused, "cannot use the EK: its authorisation policy %x is that of no TCG template", parent.AuthPolicy.Buffer)
	}
	return tpm2.Policy(tpm2.TPMAlgSHA256, nonceSize, func(tpm transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		err := t.satisfy(tpm, session, nonce, high)
		if err != nil {
			// go-tpm forgets such a session, and the TPM has a slot less.
			_, _ = tpm2.FlushContext{FlushHandle: session}.Execute(tpm) // the policy's error is the one to tell
		}
		return err
	}), nil
}

// satisfy does what the policy of an EK demands.
func (t *TPM) satisfy(tpm transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce, high bool) error {
	_, err := tpm2.PolicySecret{
		AuthHandle:    t.hierarchy(tpm2.TPMRHEndorsement),
		PolicySession: session,
		NonceTPM:      nonce,
	}.Execute(tpm)
	if err != nil {
		return failBy(tpm2.TPMRHEndorsement, err, "authorise the use of the EK")
	}
	if !high {
		return nil
	}
	_, err = tpm2.PolicyOr{PolicySession: session, PHashList: tpm2.TPMLDigest{Digests: []tpm2.TPM2BDigest{
		{Buffer: policyA()}, {Buffer: policyC},
	}}}.Execute(tpm)
	if err != nil {
		return fail(err, "satisfy the policy of the EK")
	}
	return nil
}
