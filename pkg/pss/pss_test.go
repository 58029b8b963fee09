package pss

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"testing"
)

// crypto/rsa verifies what the private operation makes of a block, also where
// the modulus is no multiple of eight bits long.
func TestEncode(t *testing.T) {
	for _, bits := range []int{2048, 2049} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			h := hash.New()
			h.Write([]byte("x"))
			digest := h.Sum(nil)
			for _, salt := range []int{rsa.PSSSaltLengthEqualsHash, rsa.PSSSaltLengthAuto, 1} {
				block, err := Encode(rand.Reader, &key.PublicKey, hash, digest, salt)
				if err != nil {
					t.Fatal(err)
				}
				m := new(big.Int).SetBytes(block)
				signature := m.Exp(m, key.D, key.N).FillBytes(make([]byte, key.Size()))
				if err := rsa.VerifyPSS(&key.PublicKey, hash, digest, signature, &rsa.PSSOptions{SaltLength: salt}); err != nil {
					t.Errorf("%d bits, %v, salt %d: %v", bits, hash, salt, err)
				}
			}
			if _, err := Encode(rand.Reader, &key.PublicKey, hash, digest, 300); err == nil {
				t.Error("a salt longer than the key was accepted")
			}
		}
	}
}
