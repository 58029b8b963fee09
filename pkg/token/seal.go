package token

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
)

// SealAuth is the auth value of a seal object: what a PIN becomes before the TPM sees
// it. It is the first 32 characters of the lower-case hex of SHA-256(pin || salt), the
// salt taken as the text in the store. The 32 characters themselves are the TPM's
// authValue; nothing is decoded.
//
// It is one round of a fast hash: whoever has the store and the right to use the TPM
// guesses at the TPM's speed, and without DA protection (noDA) nothing else stops them.
// Hence the PINs must be random.
func SealAuth(pin, salt string) []byte {
	sum := sha256.Sum256([]byte(pin + salt))
	return []byte(hex.EncodeToString(sum[:])[:32])
}

const (
	gcmIV  = 12
	gcmTag = 16
)

// WrapAuth encrypts the auth value of a key with the token's wrapping key, as the store
// keeps it: "<iv>:<tag>:<ciphertext>" in hex, AES-256-GCM without additional data. The
// wrapping key is what a seal object holds: 64 hex characters.
func WrapAuth(wrappingKey, auth []byte, rand io.Reader) (string, error) {
	aead, err := wrapper(wrappingKey)
	if err != nil {
		return "", fmt.Errorf("cannot wrap the auth value: %w", err)
	}
	iv := make([]byte, gcmIV)
	if _, err := io.ReadFull(rand, iv); err != nil {
		return "", fmt.Errorf("cannot wrap the auth value: %w", err)
	}
	sealed := aead.Seal(nil, iv, auth, nil)
	ct, tag := sealed[:len(auth)], sealed[len(auth):]
	return fmt.Sprintf("%x:%x:%x", iv, tag, ct), nil
}

// UnwrapAuth is the reverse of [WrapAuth]. The empty text, and the form "iv:tag:" which
// tpm2_ptool writes for it with a tag that nobody checks, are the empty auth value. A
// text that does not authenticate is [ErrWrongKey].
func UnwrapAuth(wrappingKey []byte, wrapped string) ([]byte, error) {
	aead, err := wrapper(wrappingKey)
	if err != nil {
		return nil, fmt.Errorf("cannot unwrap the auth value: %w", err)
	}
	if wrapped == "" {
		return nil, nil
	}
	iv, tag, ct, err := splitWrapped(wrapped)
	if err != nil {
		return nil, fmt.Errorf("cannot unwrap the auth value: %w", err)
	}
	if len(ct) == 0 {
		return nil, nil
	}
	auth, err := aead.Open(nil, iv, append(ct, tag...), nil)
	if err != nil {
		return nil, fmt.Errorf("cannot unwrap the auth value: %w", ErrWrongKey)
	}
	return auth, nil
}

func wrapper(wrappingKey []byte) (cipher.AEAD, error) {
	var key [32]byte
	// The message must not have the key in it: hex's own error has a byte of it.
	if n, err := hex.Decode(key[:], fit(wrappingKey)); err != nil || n != len(key) {
		return nil, fmt.Errorf("the wrapping key is not 64 hex characters (it has %d)", len(wrappingKey))
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// fit keeps hex.Decode within its destination.
func fit(wrappingKey []byte) []byte {
	if len(wrappingKey) != 64 {
		return nil
	}
	return wrappingKey
}

func splitWrapped(s string) (iv, tag, ct []byte, err error) {
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return nil, nil, nil, fmt.Errorf("%w: not iv:tag:ciphertext", ErrCorrupt)
	}
	var b [3][]byte
	for i, p := range parts {
		if b[i], err = hex.DecodeString(p); err != nil {
			return nil, nil, nil, fmt.Errorf("%w: not hex", ErrCorrupt)
		}
	}
	if len(b[0]) != gcmIV || len(b[1]) != gcmTag {
		return nil, nil, nil, fmt.Errorf("%w: iv of %d and tag of %d bytes", ErrCorrupt, len(b[0]), len(b[1]))
	}
	return b[0], b[1], b[2], nil
}
