package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"github.com/miekg/pkcs11"
)

// Attributes of tpm2-pkcs11's own: CKA_VENDOR_DEFINED | 0x0F000001 and so on.
const (
	attrObjAuth = 0x8F000001
	attrPublic  = 0x8F000002
	attrPrivate = 0x8F000003
)

// Half says which rows of a key pair are there. The library and keyd need both.
type Half uint8

const (
	PrivateRow Half = 1 << iota
	PublicRow

	BothRows = PrivateRow | PublicRow
)

// Key is a key pair of a token: the two rows that link a TPM key to a label.
type Key struct {
	Label string // CKA_LABEL; how keyd finds both halves
	ID    []byte // CKA_ID; how pkcs11-tool finds them

	// TPM2BPublic and TPM2BPrivate are what TPM2_Create returned, with their size
	// prefixes. The library loads the key from them at each use, under the token's
	// [Primary]; the persistent handle is not known here.
	TPM2BPublic, TPM2BPrivate []byte

	// WrappedAuth is the key's auth value as [WrapAuth] writes it; empty for a key
	// without one.
	WrappedAuth string

	// Public is the key in TPM2BPublic. [Store.AddKey] needs none; if it is given, it
	// must be the same.
	Public crypto.PublicKey

	// Rows is set by [Store.Keys] and not read by AddKey.
	Rows Half
}

// encode checks the key and makes its two rows, with every attribute that tpm2_ptool
// link writes: the library signs with fewer, but pkcs11-tool can't read the public key
// then.
func (k Key) encode() (private, public string, err error) {
	if k.Label == "" || len(k.ID) == 0 {
		return "", "", errors.New("a key needs a label and an ID")
	}
	if len(k.TPM2BPrivate) <= 2 || int(binary.BigEndian.Uint16(k.TPM2BPrivate)) != len(k.TPM2BPrivate)-2 {
		return "", "", fmt.Errorf("%w: not a TPM2B_PRIVATE", ErrUnsuitableKey)
	}
	if k.WrappedAuth != "" {
		if _, _, _, err := splitWrapped(k.WrappedAuth); err != nil {
			return "", "", fmt.Errorf("wrapped auth: %w", err)
		}
	}
	area, key, err := parsePublic(k.TPM2BPublic)
	if err != nil {
		return "", "", fmt.Errorf("%w: %w", ErrUnsuitableKey, err)
	}
	if given, ok := k.Public.(interface{ Equal(crypto.PublicKey) bool }); ok && !given.Equal(key) {
		return "", "", fmt.Errorf("%w: TPM2B_PUBLIC is of another key", ErrUnsuitableKey)
	}
	decrypt, err := usable(area)
	if err != nil {
		return "", "", fmt.Errorf("%w: %w", ErrUnsuitableKey, err)
	}

	var priv, pub yamlWriter
	local := area.ObjectAttributes.SensitiveDataOrigin
	for _, r := range []struct {
		*yamlWriter
		class uint
	}{{&priv, pkcs11.CKO_PRIVATE_KEY}, {&pub, pkcs11.CKO_PUBLIC_KEY}} {
		r.WriteString("---\n!!map {\n")
		r.num(pkcs11.CKA_CLASS, r.class)
		r.flag(pkcs11.CKA_TOKEN, true)
		r.flag(pkcs11.CKA_PRIVATE, r.class == pkcs11.CKO_PRIVATE_KEY)
		r.hex(pkcs11.CKA_LABEL, []byte(k.Label))
		r.hex(pkcs11.CKA_ID, k.ID)
		r.hex(pkcs11.CKA_SUBJECT, nil)
		r.flag(pkcs11.CKA_DERIVE, false)
		r.hex(pkcs11.CKA_START_DATE, nil)
		r.hex(pkcs11.CKA_END_DATE, nil)
		r.hex(pkcs11.CKA_PUBLIC_KEY_INFO, nil)
		r.flag(pkcs11.CKA_LOCAL, local)
		r.flag(pkcs11.CKA_MODIFIABLE, false)
		r.flag(pkcs11.CKA_COPYABLE, false)
		r.flag(pkcs11.CKA_DESTROYABLE, true)
		r.keyType(key)
		r.hex(attrPublic, k.TPM2BPublic)
	}

	priv.flag(pkcs11.CKA_SENSITIVE, true)
	priv.flag(pkcs11.CKA_ALWAYS_SENSITIVE, true)
	priv.flag(pkcs11.CKA_EXTRACTABLE, false)
	priv.flag(pkcs11.CKA_NEVER_EXTRACTABLE, true)
	priv.flag(pkcs11.CKA_ALWAYS_AUTHENTICATE, false)
	priv.flag(pkcs11.CKA_SIGN, true)
	priv.flag(pkcs11.CKA_SIGN_RECOVER, false)
	priv.flag(pkcs11.CKA_DECRYPT, decrypt)
	priv.flag(pkcs11.CKA_UNWRAP, false)
	priv.flag(pkcs11.CKA_WRAP_WITH_TRUSTED, false)
	priv.hex(attrPrivate, k.TPM2BPrivate)
	if k.WrappedAuth != "" {
		// Hex of a text that is hex itself: the C library keeps byte strings as hex,
		// and this one's bytes are the text.
		priv.hex(attrObjAuth, []byte(k.WrappedAuth))
	}

	pub.flag(pkcs11.CKA_VERIFY, true)
	pub.flag(pkcs11.CKA_VERIFY_RECOVER, false)
	pub.flag(pkcs11.CKA_ENCRYPT, decrypt)
	pub.flag(pkcs11.CKA_WRAP, false)
	pub.flag(pkcs11.CKA_TRUSTED, false)

	priv.WriteString("}\n")
	pub.WriteString("}\n")
	return priv.String(), pub.String(), nil
}

// keyType writes what depends on the algorithm. CKA_ALLOWED_MECHANISMS is what the
// library refuses to go beyond.
func (w *yamlWriter) keyType(key crypto.PublicKey) {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		w.num(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC)
		w.num(pkcs11.CKA_KEY_GEN_MECHANISM, pkcs11.CKM_EC_KEY_PAIR_GEN)
		w.hex(pkcs11.CKA_EC_PARAMS, oidP256)
		point, _ := key.Bytes() // parsePublic has seen that it is on the curve
		// DER: an OCTET STRING of an uncompressed point.
		w.hex(pkcs11.CKA_EC_POINT, append([]byte{0x04, byte(len(point))}, point...))
		w.seq(pkcs11.CKA_ALLOWED_MECHANISMS, []uint{
			pkcs11.CKM_ECDSA, pkcs11.CKM_ECDSA_SHA1, pkcs11.CKM_ECDSA_SHA256,
			pkcs11.CKM_ECDSA_SHA384, pkcs11.CKM_ECDSA_SHA512,
		})
	case *rsa.PublicKey:
		w.num(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA)
		w.num(pkcs11.CKA_KEY_GEN_MECHANISM, pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN)
		w.hex(pkcs11.CKA_MODULUS, key.N.Bytes())
		w.num(pkcs11.CKA_MODULUS_BITS, uint(key.N.BitLen()))
		e := make([]byte, 3) // 65537 as 01 00 01
		w.hex(pkcs11.CKA_PUBLIC_EXPONENT, big.NewInt(int64(key.E)).FillBytes(e))
		w.seq(pkcs11.CKA_ALLOWED_MECHANISMS, []uint{
			pkcs11.CKM_RSA_X_509, pkcs11.CKM_RSA_PKCS_OAEP, pkcs11.CKM_RSA_PKCS,
			pkcs11.CKM_SHA256_RSA_PKCS, pkcs11.CKM_SHA384_RSA_PKCS, pkcs11.CKM_SHA512_RSA_PKCS,
			pkcs11.CKM_RSA_PKCS_PSS, pkcs11.CKM_SHA1_RSA_PKCS_PSS,
			pkcs11.CKM_SHA256_RSA_PKCS_PSS, pkcs11.CKM_SHA384_RSA_PKCS_PSS, pkcs11.CKM_SHA512_RSA_PKCS_PSS,
		})
	}
}

// oidP256 is prime256v1, 1.2.840.10045.3.1.7, in DER (RFC 5480, 2.1.1.1).
var oidP256 = []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}

// usable tells whether keyd and TLS can use the key through the library, and whether it
// decrypts. The scheme must be null, because the caller's mechanism decides. An RSA key
// must be allowed to decrypt: the library makes CKM_RSA_PKCS and CKM_RSA_X_509
// signatures by TPM2_RSA_Decrypt.
func usable(area *tpm2.TPMTPublic) (decrypt bool, err error) {
	attr := area.ObjectAttributes
	if !attr.SignEncrypt || attr.Restricted {
		return false, errors.New("the key is not an unrestricted signing key")
	}
	switch area.Type {
	case tpm2.TPMAlgECC:
		detail, err := area.Parameters.ECCDetail()
		if err != nil {
			return false, err
		}
		if detail.CurveID != tpm2.TPMECCNistP256 {
			return false, fmt.Errorf("curve 0x%04x is not P-256", uint16(detail.CurveID))
		}
		if detail.Scheme.Scheme != tpm2.TPMAlgNull {
			return false, errors.New("the key has a fixed scheme")
		}
	case tpm2.TPMAlgRSA:
		detail, err := area.Parameters.RSADetail()
		if err != nil {
			return false, err
		}
		if detail.KeyBits != 2048 {
			return false, fmt.Errorf("RSA of %d bits, not 2048", detail.KeyBits)
		}
		if detail.Exponent != 0 && detail.Exponent != 65537 {
			return false, fmt.Errorf("RSA exponent %d", detail.Exponent)
		}
		if detail.Scheme.Scheme != tpm2.TPMAlgNull {
			return false, errors.New("the key has a fixed scheme")
		}
		if !attr.Decrypt {
			return false, errors.New("an RSA key must be allowed to decrypt too")
		}
	default:
		return false, fmt.Errorf("key type 0x%04x", uint16(area.Type))
	}
	return attr.Decrypt, nil
}

// parsePublic reads a TPM2B_PUBLIC of an RSA or a NIST-curve key.
func parsePublic(b []byte) (*tpm2.TPMTPublic, crypto.PublicKey, error) {
	if len(b) <= 2 || int(binary.BigEndian.Uint16(b)) != len(b)-2 {
		return nil, nil, errors.New("not a TPM2B_PUBLIC")
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](b[2:])
	if err != nil {
		return nil, nil, fmt.Errorf("not a TPM2B_PUBLIC: %w", err)
	}
	switch area.Type {
	case tpm2.TPMAlgECC:
		detail, err := area.Parameters.ECCDetail()
		if err != nil {
			return nil, nil, err
		}
		point, err := area.Unique.ECC()
		if err != nil {
			return nil, nil, err
		}
		curve, ok := curves[detail.CurveID]
		if !ok {
			return nil, nil, fmt.Errorf("curve 0x%04x", uint16(detail.CurveID))
		}
		n := (curve.Params().BitSize + 7) / 8
		if len(point.X.Buffer) > n || len(point.Y.Buffer) > n {
			return nil, nil, errors.New("coordinate longer than the curve's")
		}
		// TPMs may leave leading zeros of a coordinate out.
		raw := make([]byte, 1+2*n)
		raw[0] = 4
		copy(raw[1+n-len(point.X.Buffer):], point.X.Buffer)
		copy(raw[1+2*n-len(point.Y.Buffer):], point.Y.Buffer)
		key, err := ecdsa.ParseUncompressedPublicKey(curve, raw)
		return area, key, err
	case tpm2.TPMAlgRSA:
		detail, err := area.Parameters.RSADetail()
		if err != nil {
			return nil, nil, err
		}
		n, err := area.Unique.RSA()
		if err != nil {
			return nil, nil, err
		}
		key := &rsa.PublicKey{N: new(big.Int).SetBytes(n.Buffer), E: int(detail.Exponent)}
		if key.E == 0 {
			key.E = 65537 // Part 2, TPMS_RSA_PARMS: zero means the default exponent
		}
		if key.E < 0 { // where int has 32 bits
			return nil, nil, fmt.Errorf("exponent %d", detail.Exponent)
		}
		if key.N.BitLen() != int(detail.KeyBits) {
			return nil, nil, fmt.Errorf("modulus of %d bits in a key of %d", key.N.BitLen(), detail.KeyBits)
		}
		return area, key, nil
	}
	return nil, nil, fmt.Errorf("key type 0x%04x", uint16(area.Type))
}

var curves = map[tpm2.TPMECCCurve]elliptic.Curve{
	tpm2.TPMECCNistP256: elliptic.P256(),
	tpm2.TPMECCNistP384: elliptic.P384(),
	tpm2.TPMECCNistP521: elliptic.P521(),
}

// row is a row of tobjects as far as this package understands it.
type row struct {
	rowID           int64
	class           uint
	isKey           bool // class is one of a pair's
	label, id       []byte
	public, private []byte
	wrapped         string
}

func parseRow(attrs string) (row, error) {
	entries, err := parseYAML(attrs)
	if err != nil {
		return row{}, err
	}
	var r row
	seen := make(map[uint]bool)
	for _, e := range entries {
		attr, ok := parseUint(e.key)
		if !ok || seen[attr] {
			continue
		}
		seen[attr] = true
		var dst *[]byte
		var wrapped []byte
		switch attr {
		case pkcs11.CKA_CLASS:
			if r.class, ok = parseUint(e.value.text); !ok {
				return row{}, fmt.Errorf("%w: CKA_CLASS is not a number", ErrCorrupt)
			}
			continue
		case pkcs11.CKA_LABEL:
			dst = &r.label
		case pkcs11.CKA_ID:
			dst = &r.id
		case attrPublic:
			dst = &r.public
		case attrPrivate:
			dst = &r.private
		case attrObjAuth:
			dst = &wrapped
		default:
			continue
		}
		if *dst, err = hex.DecodeString(e.value.text); err != nil {
			return row{}, fmt.Errorf("%w: attribute 0x%x is not hex", ErrCorrupt, attr)
		}
		if attr == attrObjAuth {
			r.wrapped = string(wrapped)
		}
	}
	if !seen[pkcs11.CKA_CLASS] {
		return row{}, fmt.Errorf("%w: no CKA_CLASS", ErrCorrupt)
	}
	r.isKey = r.class == pkcs11.CKO_PRIVATE_KEY || r.class == pkcs11.CKO_PUBLIC_KEY
	return r, nil
}

const classPrivate = pkcs11.CKO_PRIVATE_KEY
