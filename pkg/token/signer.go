package token

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/miekg/pkcs11"

	"github.com/tpm2cloud/tpm2cloud/pkg/pss"
)

// Signer is a private key of a token. It serves as the PrivateKey of a tls.Certificate,
// in TLS 1.2 and 1.3, and signs CSRs. It uses the mechanisms that keyd uses and no
// other, so that what it can sign, keyd can:
//
//	EC            CKM_ECDSA on the digest
//	RSA PKCS #1   CKM_RSA_PKCS on the DigestInfo
//	RSA PSS       CKM_RSA_X_509 on an EMSA-PSS block that is padded here
//
// The library's own CKM_RSA_PKCS_PSS is left alone: some TPMs make PSS signatures with
// the longest salt that fits, and TLS wants that of the hash's length.
type Signer struct {
	m       *Module
	slot    uint
	session pkcs11.SessionHandle
	key     pkcs11.ObjectHandle
	label   string
	public  crypto.PublicKey
	closed  bool
}

// Signer logs in as the token's user, once, and returns the key with that label. If id
// is not empty, CKA_ID must be that too. Both halves must be there, as keyd demands it:
// else it is [ErrNoKey]. A token has one Signer at a time.
func (m *Module) Signer(label, userPIN, keyLabel string, id []byte) (*Signer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	slot, sh, err := m.login(label, pkcs11.CKU_USER, userPIN)
	if err != nil {
		return nil, err
	}
	s := &Signer{m: m, slot: slot, session: sh, label: keyLabel}
	if err := s.find(id); err != nil {
		m.logout(slot, sh)
		return nil, fmt.Errorf("cannot open key %q of token %q: %w", keyLabel, label, err)
	}
	return s, nil
}

func (s *Signer) find(id []byte) error {
	private, err := s.object(pkcs11.CKO_PRIVATE_KEY, id)
	if err != nil {
		return err
	}
	public, err := s.object(pkcs11.CKO_PUBLIC_KEY, id)
	if err != nil {
		return err
	}
	s.key = private
	s.public, err = s.m.publicKey(s.session, public)
	return err
}

func (s *Signer) object(class uint, id []byte) (pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, s.label),
	}
	if len(id) > 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, id))
	}
	ctx := s.m.ctx
	if err := ctx.FindObjectsInit(s.session, template); err != nil {
		return 0, wrap("search", err)
	}
	found, _, err := ctx.FindObjects(s.session, 2)
	if err := errors.Join(err, ctx.FindObjectsFinal(s.session)); err != nil {
		return 0, wrap("search", err)
	}
	half := "private"
	if class == pkcs11.CKO_PUBLIC_KEY {
		half = "public"
	}
	switch len(found) {
	case 0:
		return 0, fmt.Errorf("%w: no %s half", ErrNoKey, half)
	case 1:
		return found[0], nil
	}
	// The first one would be as likely the wrong one.
	return 0, fmt.Errorf("more than one %s key has that label", half)
}

// publicKey reads a public key object as keyd does: by its attributes, not by the TPM's
// blob.
func (m *Module) publicKey(sh pkcs11.SessionHandle, o pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	get := func(attrs ...uint) ([][]byte, error) {
		var values [][]byte
		for _, a := range attrs {
			got, err := m.ctx.GetAttributeValue(sh, o, []*pkcs11.Attribute{pkcs11.NewAttribute(a, nil)})
			if err != nil {
				return nil, wrap(fmt.Sprintf("read attribute 0x%x", a), err)
			}
			values = append(values, got[0].Value)
		}
		return values, nil
	}
	kind, err := get(pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return nil, err
	}
	switch {
	case bytes.Equal(kind[0], pkcs11.NewAttribute(0, pkcs11.CKK_EC).Value):
		v, err := get(pkcs11.CKA_EC_PARAMS, pkcs11.CKA_EC_POINT)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(v[0], oidP256) {
			return nil, fmt.Errorf("%w: its curve is not P-256", ErrUnsuitableKey)
		}
		var point []byte
		if rest, err := asn1.Unmarshal(v[1], &point); err != nil || len(rest) > 0 {
			return nil, fmt.Errorf("%w: CKA_EC_POINT is not a DER octet string", ErrCorrupt)
		}
		return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	case bytes.Equal(kind[0], pkcs11.NewAttribute(0, pkcs11.CKK_RSA).Value):
		v, err := get(pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT)
		if err != nil {
			return nil, err
		}
		e := new(big.Int).SetBytes(v[1])
		if len(v[0]) == 0 || e.BitLen() < 2 || e.BitLen() > 31 {
			return nil, fmt.Errorf("%w: modulus or exponent", ErrCorrupt)
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(v[0]), E: int(e.Int64())}, nil
	}
	return nil, fmt.Errorf("%w: key type %x", ErrUnsuitableKey, kind[0])
}

// Public returns an [*ecdsa.PublicKey] or an [*rsa.PublicKey].
func (s *Signer) Public() crypto.PublicKey { return s.public }

// Sign implements [crypto.Signer]. Random is used for the salt of PSS only (crypto/rand
// if it is nil); the TPM makes ECDSA's own nonce.
func (s *Signer) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := s.sign(random, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("cannot sign with key %q: %w", s.label, err)
	}
	return sig, nil
}

func (s *Signer) sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := opts.HashFunc()
	if hash != 0 && len(digest) != hash.Size() {
		return nil, fmt.Errorf("a digest of %d bytes is not one of %v", len(digest), hash)
	}
	switch public := s.public.(type) {
	case *ecdsa.PublicKey:
		if len(digest) == 0 {
			return nil, errors.New("the digest is empty")
		}
		// ECDSA uses the leftmost bits of a longer digest (FIPS 186-5, 6.4.1); a TPM
		// may refuse it instead.
		if n := (public.Curve.Params().N.BitLen() + 7) / 8; len(digest) > n {
			digest = digest[:n]
		}
		raw, err := s.call(pkcs11.CKM_ECDSA, digest)
		if err != nil {
			return nil, err
		}
		return derSignature(raw)
	case *rsa.PublicKey:
		options, ok := opts.(*rsa.PSSOptions)
		if !ok {
			info, err := digestInfo(hash, digest)
			if err != nil {
				return nil, err
			}
			return s.call(pkcs11.CKM_RSA_PKCS, info)
		}
		if random == nil {
			random = rand.Reader
		}
		block, err := pss.Encode(random, public, hash, digest, options.SaltLength)
		if err != nil {
			return nil, err
		}
		return s.call(pkcs11.CKM_RSA_X_509, block)
	}
	return nil, fmt.Errorf("%w: %T", ErrUnsuitableKey, s.public)
}

// call makes one C_SignInit and C_Sign, which belong together.
func (s *Signer) call(mechanism uint, data []byte) ([]byte, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.closed || s.m.ctx == nil {
		return nil, ErrClosed
	}
	op := fmt.Sprintf("use mechanism 0x%x", mechanism)
	if err := s.m.ctx.SignInit(s.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, s.key); err != nil {
		return nil, wrap(op, err)
	}
	sig, err := s.m.ctx.Sign(s.session, data)
	return sig, wrap(op, err)
}

// Close logs out. The Module stays open.
func (s *Signer) Close() error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.closed || s.m.ctx == nil {
		return nil
	}
	s.closed = true
	return s.m.logout(s.slot, s.session)
}

// derSignature turns PKCS#11's r||s into the ASN.1 of X.509 and TLS.
func derSignature(raw []byte) ([]byte, error) {
	if len(raw) == 0 || len(raw)%2 != 0 {
		return nil, fmt.Errorf("the module returned a signature of %d bytes", len(raw))
	}
	n := len(raw) / 2
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(raw[:n]), new(big.Int).SetBytes(raw[n:]),
	})
}
