package token

import (
	"crypto"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// hashOID: the algorithm identifiers of DigestInfo (RFC 8017, appendix B.1).
var hashOID = map[crypto.Hash]asn1.ObjectIdentifier{
	crypto.SHA1:   {1, 3, 14, 3, 2, 26},
	crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1},
	crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2},
	crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3},
}

// digestInfo is what a PKCS #1 v1.5 signature has inside its padding (RFC 8017, 9.2).
// Hash 0 means that the caller made it, as for [rsa.SignPKCS1v15].
func digestInfo(hash crypto.Hash, digest []byte) ([]byte, error) {
	if hash == 0 {
		return digest, nil
	}
	oid, ok := hashOID[hash]
	if !ok {
		return nil, fmt.Errorf("hash %v is not supported", hash)
	}
	type algorithm struct {
		OID  asn1.ObjectIdentifier
		NULL asn1.RawValue
	}
	return asn1.Marshal(struct {
		Algorithm algorithm
		Digest    []byte
	}{algorithm{oid, asn1.NullRawValue}, digest})
}

// emsaPSS encodes a digest for RSA-PSS (RFC 8017, 9.1.1) with MGF1 of the same hash:
// what crypto/rsa does within SignPSS, for a private key that it has.
func emsaPSS(random io.Reader, key *rsa.PublicKey, hash crypto.Hash, digest []byte, saltLen int) ([]byte, error) {
	if _, ok := hashOID[hash]; !ok || !hash.Available() {
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
