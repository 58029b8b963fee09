// Package token makes the PKCS#11 token that gives a TPM key to programs which know
// nothing of TPMs, and links the owner's key (LDevID) into it. It is the only package
// that needs cgo.
//
// It has three parts, which don't know each other:
//
//   - [Module] is libtpm2_pkcs11 itself: it makes a token,
//     and signs through it ([Signer]) as Azure's aziot-keyd will.
//   - [Store] is the library's SQLite file: it reads tokens and keys, and writes
//     what the library has no function for.
//   - [SealAuth], [WrapAuth], [UnwrapAuth] are its formats, pure functions.
//
// What happens in the TPM is the caller's: this package takes and gives bytes. The way
// from nothing to a linked key, safe to be cut at every step:
//
//	Recover(dir)                      mend what an earlier cut left
//	Open, Module.InitToken, Close     the storage key is at 0x81000001, both PINs are saved
//	OpenStore, Store.Token            seals and storage key; Primary.Check
//	    TPM2_Create, twice            seals of a wrapping key with SealAuth(PIN, salt) and noDA
//	Store.ReplaceSeals                a token with keys keeps its wrapping key: unseal it first
//	    TPM2_Create                   the key, with a random auth value
//	WrapAuth, Store.AddKey            on disk before the key is made persistent
//	Open, Module.Signer, Sign         the self-test
//
// Write rows while no Module is open: the library reads them when it starts and would
// not see them. Build with -tags libsqlite3, so that this package uses the SQLite that
// the library uses: two copies of SQLite in one process break each other's file locks.
//
// # The store
//
// It is the file tpm2_pkcs11.sqlite3 in a directory which every user of the token must
// be able to write, because the library makes its lock file there at each start. Its
// tables are the same from schema version 4 (tpm2-pkcs11 1.4) to 9 (1.10); only the
// library writes the version and migrates. The library makes the file 0644 less the
// umask: a group that shares the token needs 0660 and a umask of 0007, and that is the
// caller's to see to.
//
//	pobjects     hierarchy, config, objauth      storage keys
//	tokens       pid, label, config              label is unique
//	sealobjects  tokid, userpub, userpriv, userauthsalt, sopub, sopriv, soauthsalt
//	tobjects     tokid, attrs                    a row for each half of a key pair
//	schema       schema_version
//
// Config and attrs are YAML in libyaml's canonical form, in which each scalar has its
// tag:
//
//	---
//	!!map {
//	  ? !!int "0"
//	  : !!int "3",
//	  ? !!int "3"
//	  : !!str "6c6465766964",
//	}
//
// The keys in attrs are CKA_ numbers in decimal; byte strings are hex. A key may
// repeat; the first one counts. The library's own attributes are 0x8F000001, the
// wrapped auth value; 0x8F000002, the TPM2B_PUBLIC; 0x8F000003, the TPM2B_PRIVATE, in
// the private row only. The storage key in pobjects.config is
//
//	u32 handle | TPM2B_NAME | u32 1 | TPM2B_PUBLIC
//
// in big endian and hex, under the name "esys-tr".
//
// # PINs, seals and auth values
//
// A token has one wrapping key: 32 random bytes, kept as 64 hex characters in two TPM
// seal objects under the storage key, one for each PIN. The seal's auth value is
//
//	first 32 characters of hex(SHA-256(PIN || salt))
//
// with a salt of 64 or 128 hex characters, which is taken as text. A key's own auth
// value is encrypted with AES-256-GCM under the wrapping key and stored as the text
// "iv:tag:ciphertext" in hex (12, 16 and any number of bytes), which attrs has in hex
// once more.
//
// The library makes the seals without noDA. A power cut while one is in use counts as a
// wrong PIN, and on a TPM that allows three, the third boot is locked out with the
// right PIN. So they are replaced by seals with noDA ([Store.ReplaceSeals]), and the
// PINs must be random: nothing but their length guards them then.
//
// # What the library sends to the TPM
//
// Recorded of 1.9.0, from C_InitToken to C_Sign, by the tests of the programs: nothing
// that is secret crosses the bus in clear. Create, CreateLoaded, Load, Unseal and the
// use of keys go by HMAC sessions that are salted to the storage key and encrypted
// (AES-128-CFB); of a PIN the TPM sees the proof of the seal's auth value. What the
// sessions are salted to is the storage key in the store. C_InitToken has it from the
// TPM's word, in no session: check [Primary.Name] before the token is trusted with
// anything, and give both seals new salts.
//
// # Errors
//
// The library's refusals are [*Error] with the name of the return value and match
// [ErrPINIncorrect] and its kin by errors.Is. No error has a PIN or a key in it. The
// library itself writes lines to standard error ("ERROR: Error unsealing wrapping key")
// which can't be turned off; those of tpm2-tss beneath it are, unless TSS2_LOG is set.
package token
