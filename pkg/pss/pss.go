// Package pss pads digests for RSA-PSS signatures. Keys whose owner offers no
// more than the private operation itself (a TPM, a PKCS#11 token) are given the
// padded block; crypto/rsa keeps its own padding to itself.
package pss

import (
	"crypto"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	_ "crypto/sha256" // a hash that is not linked in cannot be used
	_ "crypto/sha512"
)

// Encode encodes a digest for RSA-PSS (RFC 8017, 9.1.1) with MGF1 of the same hash:
// what crypto/rsa does within SignPSS, for a private key that it has. The block
// is as long as the modulus; its private operation is the signature. The length
// of the salt is in bytes, or one of crypto/rsa's constants.
func Encode(random io.Reader, key *rsa.PublicKey, hash crypto.Hash, digest []byte, saltLen int) ([]byte, error) {
	if !hash.Available() {
		return nil, fmt.Errorf("hash %v is not supported", hash)
	}
	emBits := key.N.BitLen() - 1
	emLen := (emBits + 7) / 8
	dbLen := emLen - hash.Size() - 1
	switch saltLen {
	case rsa.PSSSaltLengthEqualsHash:
		saltLen = hash.Size()
	case rsa.PSSSaltLengthAuto: // for signing: the longest
		saltLen = dbLen - 1
	}
	if saltLen < 0 || saltLen > dbLen-1 {
		return nil, errors.New("the key is too short for this hash and salt")
	}
	salt := make([]byte, saltLen)
	if _, err := io.ReadFull(random, salt); err != nil {
		return nil, err
	}
	// H = Hash(eight zero bytes || digest || salt)
	h := hash.New()
	h.Write(make([]byte, 8))
	h.Write(digest)
	h.Write(salt)

	// EM = (zeros || 01 || salt) xor MGF1(H) || H || BC
	em := make([]byte, dbLen, emLen)
	em[dbLen-saltLen-1] = 0x01
	copy(em[dbLen-saltLen:], salt)
	em = h.Sum(em)
	mgf1xor(em[:dbLen], hash, em[dbLen:])
	em[0] &= 0xFF >> (8*emLen - emBits)
	em = append(em, 0xBC)

	// A modulus of 8k+1 bits makes EM one byte shorter than the modulus; raw RSA wants
	// its length.
	block := make([]byte, key.Size())
	copy(block[len(block)-emLen:], em)
	return block, nil
}

// mgf1xor xors a mask generated from seed over out (RFC 8017, B.2.1).
func mgf1xor(out []byte, hash crypto.Hash, seed []byte) {
	var counter [4]byte
	for i := uint32(0); len(out) > 0; i++ {
		binary.BigEndian.PutUint32(counter[:], i)
		h := hash.New()
		h.Write(seed)
		h.Write(counter[:])
		for _, b := range h.Sum(nil) {
			if len(out) == 0 {
				return
			}
			out[0] ^= b
			out = out[1:]
		}
	}
}
