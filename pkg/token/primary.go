package token

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
)

// Primary is the storage key of a token, out of the pobjects table: the parent of its
// seals and keys.
type Primary struct {
	ID int64 // of the row

	// Handle is the persistent handle; 0 for a primary key that the library creates
	// anew at each start (tpm2_ptool init --transient-parent): it has no name here.
	Handle uint32

	Name   []byte // the TPM's name of the key, as TPM2_ReadPublic gives it
	Public []byte // its TPM2B_PUBLIC
}

// Check compares the storage key that the token was made under with the one that the
// TPM has at that handle; a difference is [ErrOtherParent]. The library itself finds
// out late, when the HMAC session of the first load fails, and says CKR_GENERAL_ERROR.
func (p Primary) Check(handle uint32, name []byte) error {
	if p.Handle == handle && len(name) > 0 && bytes.Equal(p.Name, name) {
		return nil
	}
	return fmt.Errorf("cannot use the token: %w: made under 0x%08x with name %x, the TPM has 0x%08x with name %x",
		ErrOtherParent, p.Handle, p.Name, handle, name)
}

// parsePrimary reads pobjects.config. Its "esys-tr" is the hex of what
// Esys_TR_Serialize makes of a persistent key, all big endian:
//
//	u32           handle
//	TPM2B_NAME    u16 size, u16 hash algorithm, digest of the public area
//	u32           1: "a key" (IESYSC_KEY_RSRC)
//	TPM2B_PUBLIC  u16 size, TPMT_PUBLIC
func parsePrimary(config string) (Primary, error) {
	entries, err := parseYAML(config)
	if err != nil {
		return Primary{}, err
	}
	tr, ok := first(entries, "esys-tr")
	if !ok {
		if truth(entries, "transient") {
			return Primary{}, nil
		}
		return Primary{}, fmt.Errorf("%w: neither transient nor esys-tr", ErrCorrupt)
	}
	b, err := hex.DecodeString(tr.text)
	if err != nil {
		return Primary{}, fmt.Errorf("%w: esys-tr is not hex", ErrCorrupt)
	}
	return parseESYSTR(b)
}

func parseESYSTR(b []byte) (Primary, error) {
	r := reader{b: b}
	p := Primary{Handle: r.u32(), Name: r.sized()}
	kind := r.u32()
	public := r.b
	area := r.sized()
	switch {
	case r.short:
		return Primary{}, fmt.Errorf("%w: esys-tr is cut short", ErrCorrupt)
	case len(r.b) != 0:
		return Primary{}, fmt.Errorf("%w: esys-tr has %d bytes too many", ErrCorrupt, len(r.b))
	case kind != 1:
		return Primary{}, fmt.Errorf("%w: esys-tr is of kind %d, not a key", ErrCorrupt, kind)
	}
	// TPM_ALG_SHA256 is the name algorithm of every storage key in use; of another
	// algorithm the TPM's own comparison has to do.
	if len(p.Name) == 2+sha256.Size && binary.BigEndian.Uint16(p.Name) == algSHA256 {
		if sum := sha256.Sum256(area); !bytes.Equal(p.Name[2:], sum[:]) {
			return Primary{}, fmt.Errorf("%w: esys-tr has a name that is not its public area's", ErrCorrupt)
		}
	}
	p.Public = public
	return p, nil
}

const algSHA256 = 0x000B // TPM 2.0 Library, Part 2, table of TPM_ALG_ID

// reader takes big-endian fields off b. After the first that is missing, short is set
// and all others are zero.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || len(r.b) < n {
		r.short, r.b = true, nil
		return make([]byte, min(n, 4)) // enough for a number
	}
	f := r.b[:n:n]
	r.b = r.b[n:]
	return f
}

func (r *reader) u32() uint32   { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) sized() []byte { return r.take(int(binary.BigEndian.Uint16(r.take(2)))) }

// parseUint reads an attribute's number or value.
func parseUint(s string) (uint, bool) {
	n, err := strconv.ParseUint(s, 0, 32)
	return uint(n), err == nil
}
