package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/pss"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Signer is a key of the TPM as a [crypto.Signer]: for CSRs and for TLS 1.2
// and 1.3. Its authorisation value is empty.
type Signer struct {
	tpm    *TPM
	key    *Key
	public crypto.PublicKey
}

// Signer makes a signer of a persistent key.
func (t *TPM) Signer(k *Key) (*Signer, error) {
	public, err := k.PublicKey()
	if err != nil {
		return nil, err
	}
	return &Signer{t, k, public}, nil
}

// Public is the key's public part.
func (s *Signer) Public() crypto.PublicKey { return s.public }

var hashes = map[crypto.Hash]tpm2.TPMAlgID{
	crypto.SHA256: tpm2.TPMAlgSHA256,
	crypto.SHA384: tpm2.TPMAlgSHA384,
	crypto.SHA512: tpm2.TPMAlgSHA512,
}

// Sign signs a digest. Every signature is verified before it is given out: a
// fault in the chip or on the bus ends here, and not at a server that only
// says "bad certificate".
func (s *Signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	alg, ok := hashes[opts.HashFunc()]
	if !ok || len(digest) != opts.HashFunc().Size() {
		return nil, step.Fail(step.Software, "cannot sign with the key at %#x: no digest of %v", uint32(s.key.Handle), opts.HashFunc())
	}
	signature, err := s.sign(alg, digest, opts)
	if err != nil {
		return nil, err
	}
	if err := verify(s.public, digest, signature, opts); err != nil {
		return nil, step.Fail(step.Refused, "cannot sign with the key at %#x: the TPM's signature is wrong: %w", uint32(s.key.Handle), err)
	}
	return signature, nil
}

func (s *Signer) sign(alg tpm2.TPMAlgID, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	switch public := s.public.(type) {
	case *ecdsa.PublicKey:
		return s.ecdsa(alg, digest)
	case *rsa.PublicKey:
		if _, pss := opts.(*rsa.PSSOptions); !pss {
			return s.rsa(tpm2.TPMAlgRSASSA, alg, digest)
		}
		// TLS wants a salt as long as the digest. TPMs of an older revision
		// take the longest that fits: their raw operation serves then.
		signature, err := s.rsa(tpm2.TPMAlgRSAPSS, alg, digest)
		if err == nil && verify(public, digest, signature, opts) == nil {
			return signature, nil
		}
		if raw, rawErr := s.raw(public, digest, opts.HashFunc()); rawErr == nil {
			return raw, nil
		} else if err == nil {
			err = rawErr
		}
		return nil, err
	}
	return nil, step.Fail(step.Software, "cannot sign with the key at %#x: it is neither RSA nor ECDSA", uint32(s.key.Handle))
}

func (s *Signer) handle() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: s.key.Handle, Name: tpm2.TPM2BName{Buffer: s.key.Name}, Auth: tpm2.PasswordAuth(nil)}
}

func (s *Signer) command(scheme, alg tpm2.TPMAlgID, digest []byte) (*tpm2.TPMTSignature, error) {
	rsp, err := tpm2.Sign{
		KeyHandle:  s.handle(),
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   tpm2.TPMTSigScheme{Scheme: scheme, Details: tpm2.NewTPMUSigScheme(scheme, &tpm2.TPMSSchemeHash{HashAlg: alg})},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(s.tpm.transport)
	if err != nil {
		return nil, fail(err, "sign with the key at %#x", uint32(s.key.Handle))
	}
	return &rsp.Signature, nil
}

func (s *Signer) ecdsa(alg tpm2.TPMAlgID, digest []byte) ([]byte, error) {
	signature, err := s.command(tpm2.TPMAlgECDSA, alg, digest)
	if err != nil {
		return nil, err
	}
	parts, err := signature.Signature.ECDSA()
	if err != nil {
		return nil, step.Fail(step.Refused, "cannot read the signature of the key at %#x: %w", uint32(s.key.Handle), err)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(parts.SignatureR.Buffer), new(big.Int).SetBytes(parts.SignatureS.Buffer),
	})
}

func (s *Signer) rsa(scheme, alg tpm2.TPMAlgID, digest []byte) ([]byte, error) {
	signature, err := s.command(scheme, alg, digest)
	if err != nil {
		return nil, err
	}
	var rsaSignature *tpm2.TPMSSignatureRSA
	if scheme == tpm2.TPMAlgRSAPSS {
		rsaSignature, err = signature.Signature.RSAPSS()
	} else {
		rsaSignature, err = signature.Signature.RSASSA()
	}
	if err != nil {
		return nil, step.Fail(step.Refused, "cannot read the signature of the key at %#x: %w", uint32(s.key.Handle), err)
	}
	return rsaSignature.Sig.Buffer, nil
}

// raw makes a PSS signature of a padded block with the private operation
// itself, which a key that may decrypt offers.
func (s *Signer) raw(public *rsa.PublicKey, digest []byte, h crypto.Hash) ([]byte, error) {
	block, err := pss.Encode(rand.Reader, public, h, digest, rsa.PSSSaltLengthEqualsHash)
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.RSADecrypt{
		KeyHandle:  s.handle(),
		CipherText: tpm2.TPM2BPublicKeyRSA{Buffer: block},
		InScheme:   tpm2.TPMTRSADecrypt{Scheme: tpm2.TPMAlgNull},
	}.Execute(s.tpm.transport)
	if err != nil {
		return nil, fail(err, "sign with the key at %#x", uint32(s.key.Handle))
	}
	return rsp.Message.Buffer, nil
}

func verify(public crypto.PublicKey, digest, signature []byte, opts crypto.SignerOpts) error {
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(public, digest, signature) {
			return errors.New("ECDSA verification failed")
		}
		return nil
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(public, opts.HashFunc(), digest, signature, pss)
		}
		return rsa.VerifyPKCS1v15(public, opts.HashFunc(), digest, signature)
	}
	return errors.New("no RSA or ECDSA key")
}
