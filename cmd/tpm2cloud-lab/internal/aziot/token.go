package aziot

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"sync"

	"github.com/miekg/pkcs11"
)

// module is a PKCS#11 library. Each use of it is a phase of its own, from C_Initialize to
// C_Finalize: so never more than one key is loaded, and an swtpm without a resource manager, which
// has three slots for objects, serves for several keys. One that is held is initialised once, as
// that of the real keyd is, and a phase is a session.
type module struct {
	path string
	held bool
	open bool       // initialised; only while it is held
	mu   sync.Mutex // C_Initialize is once per process
	ctx  *pkcs11.Ctx
}

var errNoKey = errors.New("no such key")

// session is an open session, within one phase.
type session struct {
	ctx *pkcs11.Ctx
	h   pkcs11.SessionHandle
}

// phase opens a session on the token of uri, logged in if asked to, and calls do.
func (m *module) phase(uri *TokenURI, login bool, do func(session) error) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx == nil {
		if m.ctx = pkcs11.New(m.path); m.ctx == nil {
			return fmt.Errorf("cannot load PKCS#11 library %s", m.path)
		}
	}
	if !m.open {
		if err := m.ctx.Initialize(); err != nil {
			return fmt.Errorf("C_Initialize: %w", err)
		}
		m.open = m.held
	}
	if !m.held {
		defer func() {
			if e := m.ctx.Finalize(); err == nil && e != nil {
				err = fmt.Errorf("C_Finalize: %w", e)
			}
		}()
	}
	slot, err := m.slot(uri)
	if err != nil {
		return err
	}
	h, err := m.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return fmt.Errorf("C_OpenSession: %w", err)
	}
	// The last session of a token takes the login with it, and what is loaded.
	defer func() { _ = m.ctx.CloseSession(h) }()
	if login {
		if !uri.HasPIN {
			return errors.New("URI has no pin-value to log in with")
		}
		if err := m.ctx.Login(h, pkcs11.CKU_USER, uri.PIN); err != nil {
			return fmt.Errorf("C_Login: %w", err)
		}
	}
	return do(session{m.ctx, h})
}

// release ends the holding of a module.
func (m *module) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.open {
		_ = m.ctx.Finalize() // the process ends
		m.open = false
	}
}

// slot finds the token by its label, if it is initialised, or takes the id as it is.
func (m *module) slot(uri *TokenURI) (uint, error) {
	if uri.HasSlot {
		return uint(uri.Slot), nil
	}
	slots, err := m.ctx.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("C_GetSlotList: %w", err)
	}
	for _, slot := range slots {
		info, err := m.ctx.GetTokenInfo(slot)
		if err != nil {
			return 0, fmt.Errorf("C_GetTokenInfo: %w", err)
		}
		// Labels are padded with blanks to 32 bytes.
		if info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 && strings.TrimRight(info.Label, " ") == uri.Token {
			return slot, nil
		}
	}
	return 0, errors.New("could not find a slot with a matching label")
}

// find returns the first object of a class with the URI's label, or of any label if it has none.
func (s session) find(class uint, uri *TokenURI) (pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class)}
	if uri.HasObject {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, uri.Object))
	}
	if err := s.ctx.FindObjectsInit(s.h, template); err != nil {
		return 0, fmt.Errorf("C_FindObjectsInit: %w", err)
	}
	objects, _, err := s.ctx.FindObjects(s.h, 1)
	if e := s.ctx.FindObjectsFinal(s.h); err == nil {
		err = e
	}
	if err != nil {
		return 0, fmt.Errorf("C_FindObjects: %w", err)
	}
	if len(objects) == 0 {
		return 0, errNoKey
	}
	return objects[0], nil
}

// pair finds both halves of a key: the same label and the same type. CKA_ID is never looked at.
func (s session) pair(uri *TokenURI) (public, private pkcs11.ObjectHandle, keyType uint, err error) {
	var types [2]uint
	var objects [2]pkcs11.ObjectHandle
	for i, class := range []uint{pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_PRIVATE_KEY} {
		if objects[i], err = s.find(class, uri); err != nil {
			return 0, 0, 0, err
		}
		v, err := s.attributes(objects[i], pkcs11.CKA_KEY_TYPE)
		if err != nil {
			return 0, 0, 0, err
		}
		for j := len(v[0]) - 1; j >= 0; j-- { // a CK_ULONG of a little-endian machine
			types[i] = types[i]<<8 | uint(v[0][j])
		}
	}
	if types[0] != types[1] || types[0] != pkcs11.CKK_EC && types[0] != pkcs11.CKK_RSA {
		return 0, 0, 0, fmt.Errorf("public and private key are of types %#x and %#x", types[0], types[1])
	}
	return objects[0], objects[1], types[0], nil
}

func (s session) attributes(o pkcs11.ObjectHandle, kinds ...uint) ([][]byte, error) {
	var template []*pkcs11.Attribute
	for _, k := range kinds {
		template = append(template, pkcs11.NewAttribute(k, nil))
	}
	attributes, err := s.ctx.GetAttributeValue(s.h, o, template)
	if err != nil {
		return nil, fmt.Errorf("C_GetAttributeValue: %w", err)
	}
	values := make([][]byte, len(attributes))
	for i, a := range attributes {
		values[i] = a.Value
	}
	return values, nil
}

// publicKey reads the public half as keyd does: from its EC parameters and point, or from its RSA
// modulus and exponent.
func (s session) publicKey(o pkcs11.ObjectHandle, keyType uint) (crypto.PublicKey, error) {
	if keyType == pkcs11.CKK_RSA {
		v, err := s.attributes(o, pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT)
		if err != nil {
			return nil, err
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(v[0]), E: int(new(big.Int).SetBytes(v[1]).Int64())}, nil
	}
	v, err := s.attributes(o, pkcs11.CKA_EC_PARAMS, pkcs11.CKA_EC_POINT)
	if err != nil {
		return nil, err
	}
	var curve asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(v[0], &curve); err != nil || len(rest) != 0 || !curve.Equal(oidP256) {
		return nil, fmt.Errorf("CKA_EC_PARAMS %x is not the named curve P-256", v[0])
	}
	var point []byte
	if rest, err := asn1.Unmarshal(v[1], &point); err != nil || len(rest) != 0 {
		return nil, fmt.Errorf("CKA_EC_POINT %x is no OCTET STRING", v[1])
	}
	if _, err := ecdh.P256().NewPublicKey(point); err != nil { // is on the curve
		return nil, fmt.Errorf("CKA_EC_POINT: %w", err)
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
}

var oidP256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}

// tokenKey is a key pair in a token.
type tokenKey struct {
	module *module
	uri    *TokenURI
	public crypto.PublicKey
}

func (m *module) load(uri *TokenURI) (*tokenKey, error) {
	k := &tokenKey{module: m, uri: uri}
	err := m.phase(uri, true, func(s session) error {
		public, _, keyType, err := s.pair(uri)
		if err == nil {
			k.public, err = s.publicKey(public, keyType)
		}
		return err
	})
	return k, err
}

// Public implements crypto.Signer.
func (k *tokenKey) Public() crypto.PublicKey { return k.public }

// Sign implements crypto.Signer with the mechanisms that keyd uses: ECDSA on the digest, RSA PKCS#1
// on a DigestInfo, and for PSS raw RSA on a block that is encoded here.
func (k *tokenKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) (signature []byte, err error) {
	mechanism, input := uint(pkcs11.CKM_ECDSA), digest
	public, isRSA := k.public.(*rsa.PublicKey)
	if isRSA {
		if pss, is := opts.(*rsa.PSSOptions); is {
			mechanism = pkcs11.CKM_RSA_X_509
			input, err = encodePSS(rand, digest, public.N.BitLen(), opts.HashFunc(), pss.SaltLength)
		} else {
			mechanism = pkcs11.CKM_RSA_PKCS
			input, err = digestInfo(opts.HashFunc(), digest)
		}
		if err != nil {
			return nil, err
		}
	}
	err = k.module.phase(k.uri, true, func(s session) error {
		_, private, _, err := s.pair(k.uri)
		if err != nil {
			return err
		}
		if err := s.ctx.SignInit(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, private); err != nil {
			return fmt.Errorf("C_SignInit: %w", err)
		}
		if signature, err = s.ctx.Sign(s.h, input); err != nil {
			return fmt.Errorf("C_Sign: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot sign with the token: %w", err)
	}
	if isRSA {
		return signature, nil
	}
	half := len(signature) / 2
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(signature[:half]), new(big.Int).SetBytes(signature[half:]),
	})
}
