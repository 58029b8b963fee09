package ek

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
)

// KeyKind is an algorithm with its size, as the TCG tells endorsement keys apart.
type KeyKind string

const (
	RSA2048 KeyKind = "RSA-2048"
	RSA3072 KeyKind = "RSA-3072"
	RSA4096 KeyKind = "RSA-4096"
	P256    KeyKind = "P-256"
	P384    KeyKind = "P-384"
	P521    KeyKind = "P-521"
)

// Supported tells whether a key of this kind can be the parent of an IDevID here: [RSA2048] or [P256].
func (k KeyKind) Supported() bool { return k == RSA2048 || k == P256 }

// KindOf returns the kind of an RSA or ECDSA public key, and "" for any other key.
func KindOf(key crypto.PublicKey) KeyKind {
	switch k := key.(type) {
	case *rsa.PublicKey:
		switch k.N.BitLen() {
		case 2048:
			return RSA2048
		case 3072:
			return RSA3072
		case 4096:
			return RSA4096
		}
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return P256
		case elliptic.P384():
			return P384
		case elliptic.P521():
			return P521
		}
	}
	return ""
}

// SameKey tells whether a and b are the same RSA or ECDSA public key. It's how the certificate's
// key is compared with the endorsement key that the TPM shows: without it, a genuine certificate
// of another TPM, written to this one's NV, would pass. It's false for nil and for every other
// type of key.
func SameKey(a, b crypto.PublicKey) bool {
	switch a := a.(type) {
	case *rsa.PublicKey:
		b, ok := b.(*rsa.PublicKey)
		return ok && a != nil && b != nil && a.Equal(b)
	case *ecdsa.PublicKey:
		b, ok := b.(*ecdsa.PublicKey)
		return ok && a != nil && b != nil && a.Equal(b)
	}
	return false
}

// Slot is a place in NV where the TCG puts an EK certificate, with the indices beside it that say
// how the certified key is made again from the endorsement seed (TCG EK Credential Profile
// 2.x, clauses 2.2.1.4 "Low Range" and 2.2.1.5 "High Range").
type Slot struct {
	Name        string  // such as "RSA-2048 (low range)"
	Key         KeyKind // the kind of key that belongs here
	Certificate uint32  // NV index of the certificate
	Template    uint32  // NV index of the key's template (TPMT_PUBLIC); the default template applies where it's undefined
	Nonce       uint32  // NV index of the nonce for the template's unique field; 0 in the high range, which has none
}

// HighRange tells whether the slot is of the high range, whose default templates have another
// policy, and therefore other keys, than those of the low range for the same algorithm.
func (s Slot) HighRange() bool { return s.Certificate >= 0x01C00012 }

// Slots returns the slots in the order of preference: RSA-2048 and P-256 of the low
// range, where nearly every TPM has a certificate, then the high range. SM2 (0x01C0001A) isn't
// among them: neither the Go library nor this program knows the curve.
func Slots() []Slot {
	return []Slot{
		{Name: "RSA-2048 (low range)", Key: RSA2048, Certificate: 0x01C00002, Nonce: 0x01C00003, Template: 0x01C00004},
		{Name: "P-256 (low range)", Key: P256, Certificate: 0x01C0000A, Nonce: 0x01C0000B, Template: 0x01C0000C},
		{Name: "RSA-2048 (high range)", Key: RSA2048, Certificate: 0x01C00012, Template: 0x01C00013},
		{Name: "P-256 (high range)", Key: P256, Certificate: 0x01C00014, Template: 0x01C00015},
		{Name: "P-384 (high range)", Key: P384, Certificate: 0x01C00016, Template: 0x01C00017},
		{Name: "P-521 (high range)", Key: P521, Certificate: 0x01C00018, Template: 0x01C00019},
		{Name: "RSA-3072 (high range)", Key: RSA3072, Certificate: 0x01C0001C, Template: 0x01C0001D},
		{Name: "RSA-4096 (high range)", Key: RSA4096, Certificate: 0x01C0001E, Template: 0x01C0001F},
	}
}

// ChainFirst and ChainLast bound the NV indices of the EK certificate chain
// (TCG EK Credential Profile 2.x, clause 2.2.1.5.2 "Handle Values for EK Certificate Chains").
const (
	ChainFirst uint32 = 0x01C00100
	ChainLast  uint32 = 0x01C001FF
)
