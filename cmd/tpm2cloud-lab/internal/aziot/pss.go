package aziot

import (
	"crypto"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// encodePSS is EMSA-PSS-ENCODE (RFC 8017, 9.1.1) with MGF1 of the same hash. The result has the
// length of the modulus, for raw RSA.
func encodePSS(rand io.Reader, digest []byte, modulusBits int, hash crypto.Hash, saltLength int) ([]byte, error) {
	hLen := hash.Size()
	bits := modulusBits - 1
	size := (bits + 7) / 8
	switch saltLength {
	case rsa.PSSSaltLengthEqualsHash:
		saltLength = hLen
	case rsa.PSSSaltLengthAuto:
		saltLength = size - hLen - 2
	}
	if len(digest) != hLen {
		return nil, fmt.Errorf("cannot encode for PSS: digest of %d bytes, not %d", len(digest), hLen)
	}
	if saltLength < 0 || size < hLen+saltLength+2 {
		return nil, errors.New("cannot encode for PSS: the key is too short for this hash")
	}
	salt := make([]byte, saltLength)
	if _, err := io.ReadFull(rand, salt); err != nil {
		return nil, fmt.Errorf("cannot encode for PSS: %w", err)
	}
	h := hash.New()
	h.Write(make([]byte, 8))
	h.Write(digest)
	h.Write(salt)
	seed := h.Sum(nil)

	// DB = zeros, 0x01, salt; the block is maskedDB, H, 0xbc.
	block := make([]byte, size)
	db := block[:size-hLen-1]
	db[len(db)-saltLength-1] = 1
	copy(db[len(db)-saltLength:], salt)
	maskMGF1(db, seed, hash)
	db[0] &= 0xff >> (8*size - bits)
	copy(block[len(db):], seed)
	block[size-1] = 0xbc

	// A modulus of 8n+1 bits makes the block a byte shorter than the modulus.
	padded := make([]byte, (modulusBits+7)/8)
	copy(padded[len(padded)-size:], block)
	return padded, nil
}

// maskMGF1 XORs db with MGF1 of seed (RFC 8017, B.2.1).
func maskMGF1(db, seed []byte, hash crypto.Hash) {
	for counter := uint32(0); len(db) > 0; counter++ {
		h := hash.New()
		h.Write(seed)
		h.Write(binary.BigEndian.AppendUint32(nil, counter))
		mask := h.Sum(nil)
		n := min(len(mask), len(db))
		for i := range n {
			db[i] ^= mask[i]
		}
		db = db[n:]
	}
}

// digestInfo is the DER block that PKCS#1 v1.5 signs (RFC 8017, 9.2).
func digestInfo(hash crypto.Hash, digest []byte) ([]byte, error) {
	arcs := map[crypto.Hash]int{crypto.SHA256: 1, crypto.SHA384: 2, crypto.SHA512: 3}
	arc, known := arcs[hash]
	if !known {
		return nil, fmt.Errorf("cannot sign: %v is no hash for PKCS#1 here", hash)
	}
	type algorithm struct {
		OID  asn1.ObjectIdentifier
		Null asn1.RawValue
	}
	return asn1.Marshal(struct {
		Algorithm algorithm
		Digest    []byte
	}{algorithm{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, arc}, asn1.NullRawValue}, digest})
}
