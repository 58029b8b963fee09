package main

import (
	"encoding/binary"
	"fmt"
	"maps"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// A header of a command or response: tag (2 bytes), size (4), code (4).
const headerSize = 10

// Cost is what a command makes a real chip work on.
type Cost int

// Key generation and private operations are what a chip is slow at; anything
// else is Plain. A salted session is counted by itself: to get at the salt, the
// TPM uses a private key.
const (
	Plain Cost = iota
	RSAKey
	RSAPrivate
	RSASalt
	ECCKey
	ECCPrivate
	ECCSalt
)

var costNames = []string{
	Plain:      "all else",
	RSAKey:     "RSA 2048 key",
	RSAPrivate: "RSA operation",
	RSASalt:    "session salted to RSA",
	ECCKey:     "P-256 key",
	ECCPrivate: "P-256 operation",
	ECCSalt:    "session salted to P-256",
}

func (c Cost) String() string { return costNames[c] }

// A model is how long a chip works on each kind of command.
type model map[Cost]time.Duration

// slb9670 has the mean times of an Infineon SLB9670 on SPI, from the benchmarks
// in wolfTPM's README. They have no figure but for keys and signatures: all
// else is an assumption, which is printed with every figure that rests on it.
var slb9670 = model{
	Plain:      15 * time.Millisecond,
	RSAKey:     2196 * time.Millisecond,
	RSAPrivate: 163 * time.Millisecond,
	RSASalt:    15 * time.Millisecond,
	ECCKey:     231 * time.Millisecond,
	ECCPrivate: 69 * time.Millisecond,
	ECCSalt:    15 * time.Millisecond,
}

// withSalts is the same chip, if to take the salt of a session takes it as long
// as another operation with that private key.
func (m model) withSalts() model {
	m = maps.Clone(m)
	m[RSASalt], m[ECCSalt] = m[RSAPrivate], m[ECCPrivate]
	return m
}

// Command is one command that a TPM has answered.
type Command struct {
	Code tpm2.TPMCC
	Own  bool // sent by our own code, and not by a C library
	RC   tpm2.TPMRC
	Cost Cost
}

// classify reads what a command was from its bytes and those of its response.
// A field that cannot be read makes the command Plain: the TPM, and not the
// benchmark, judges what is well-formed.
func classify(command, response []byte) Command {
	c := Command{Code: codeOf(command), RC: tpm2.TPMRC(codeOf(response))}
	if c.RC != tpm2.TPMRCSuccess {
		return c // a refusal costs no key
	}
	switch c.Code {
	case tpm2.TPMCCCreatePrimary, tpm2.TPMCCCreate, tpm2.TPMCCCreateLoaded:
		c.Cost = costOfType(createdType(command))
	case tpm2.TPMCCSign:
		c.Cost = costOfSignature(signatureAlg(response))
	case tpm2.TPMCCRSADecrypt:
		c.Cost = RSAPrivate
	case tpm2.TPMCCStartAuthSession:
		c.Cost = costOfSalt(command)
	}
	return c
}

func costOfType(alg tpm2.TPMAlgID) Cost {
	switch alg {
	case tpm2.TPMAlgRSA:
		return RSAKey
	case tpm2.TPMAlgECC:
		return ECCKey
	}
	return Plain // sealed data is not generated
}

func costOfSignature(alg tpm2.TPMAlgID) Cost {
	switch alg {
	case tpm2.TPMAlgRSASSA, tpm2.TPMAlgRSAPSS:
		return RSAPrivate
	case tpm2.TPMAlgECDSA:
		return ECCPrivate
	}
	return Plain
}

// costOfSalt goes by length: a ciphertext of RSA 2048 has 256 bytes, a point of
// P-256 with the lengths of its coordinates 68.
func costOfSalt(command []byte) Cost {
	r := reader(command[headerSize:])
	r.skip(8) // handles: tpmKey, bind
	r.sized() // nonceCaller
	switch salt := r.sized(); {
	case len(salt) >= 256:
		return RSASalt
	case len(salt) > 0:
		return ECCSalt
	}
	return Plain
}

// createdType is the type in the public area that a Create command asks for.
// A session may encrypt the first parameter but never its length, so that the
// second can be found without a key (TPM 2.0 Library, Part 1, clause 21.1).
func createdType(command []byte) tpm2.TPMAlgID {
	r := reader(command[headerSize:])
	r.skip(4) // handle of the parent
	if tagOf(command) == tpm2.TPMSTSessions {
		r.skip(int(r.uint32()))
	}
	r.sized() // inSensitive
	public := reader(r.sized())
	return tpm2.TPMAlgID(public.uint16())
}

// signatureAlg is the algorithm in the response to a Sign command.
func signatureAlg(response []byte) tpm2.TPMAlgID {
	r := reader(response[headerSize:])
	if tagOf(response) == tpm2.TPMSTSessions {
		r.skip(4) // parameterSize
	}
	return tpm2.TPMAlgID(r.uint16())
}

func tagOf(b []byte) tpm2.TPMST  { return tpm2.TPMST(binary.BigEndian.Uint16(b)) }
func sizeOf(b []byte) uint32     { return binary.BigEndian.Uint32(b[2:]) }
func codeOf(b []byte) tpm2.TPMCC { return tpm2.TPMCC(binary.BigEndian.Uint32(b[6:])) }
func nameOf(c tpm2.TPMCC) string {
	if name, ok := names[c]; ok {
		return name
	}
	return fmt.Sprintf("0x%08X", uint32(c))
}

// reader takes fields from the front. When too little is left it gives zeros.
type reader []byte

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(*r) {
		*r = nil
		return nil
	}
	field := (*r)[:n]
	*r = (*r)[n:]
	return field
}

func (r *reader) skip(n int) { r.take(n) }

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// sized is a TPM2B: a length of 16 bits and as many bytes.
func (r *reader) sized() []byte { return r.take(int(r.uint16())) }

// names of the commands that either contender sends, and some more.
var names = map[tpm2.TPMCC]string{
	tpm2.TPMCCActivateCredential:        "ActivateCredential",
	tpm2.TPMCCCertify:                   "Certify",
	tpm2.TPMCCClear:                     "Clear",
	tpm2.TPMCCClearControl:              "ClearControl",
	tpm2.TPMCCContextLoad:               "ContextLoad",
	tpm2.TPMCCContextSave:               "ContextSave",
	tpm2.TPMCCCreate:                    "Create",
	tpm2.TPMCCCreateLoaded:              "CreateLoaded",
	tpm2.TPMCCCreatePrimary:             "CreatePrimary",
	tpm2.TPMCCDictionaryAttackLockReset: "DictionaryAttackLockReset",
	tpm2.TPMCCECCParameters:             "ECC_Parameters",
	tpm2.TPMCCECDHKeyGen:                "ECDH_KeyGen",
	tpm2.TPMCCECDHZGen:                  "ECDH_ZGen",
	tpm2.TPMCCEvictControl:              "EvictControl",
	tpm2.TPMCCFlushContext:              "FlushContext",
	tpm2.TPMCCGetCapability:             "GetCapability",
	tpm2.TPMCCGetRandom:                 "GetRandom",
	tpm2.TPMCCHash:                      "Hash",
	tpm2.TPMCCHashSequenceStart:         "HashSequenceStart",
	tpm2.TPMCCHierarchyChanegAuth:       "HierarchyChangeAuth",
	tpm2.TPMCCHierarchyControl:          "HierarchyControl",
	tpm2.TPMCCLoad:                      "Load",
	tpm2.TPMCCLoadExternal:              "LoadExternal",
	tpm2.TPMCCNVDefineSpace:             "NV_DefineSpace",
	tpm2.TPMCCNVRead:                    "NV_Read",
	tpm2.TPMCCNVReadPublic:              "NV_ReadPublic",
	tpm2.TPMCCNVUndefineSpace:           "NV_UndefineSpace",
	tpm2.TPMCCNVWrite:                   "NV_Write",
	tpm2.TPMCCNVWriteLock:               "NV_WriteLock",
	tpm2.TPMCCPolicyGetDigest:           "PolicyGetDigest",
	tpm2.TPMCCPolicySecret:              "PolicySecret",
	tpm2.TPMCCRSADecrypt:                "RSA_Decrypt",
	tpm2.TPMCCRSAEncrypt:                "RSA_Encrypt",
	tpm2.TPMCCReadClock:                 "ReadClock",
	tpm2.TPMCCReadPublic:                "ReadPublic",
	tpm2.TPMCCSelfTest:                  "SelfTest",
	tpm2.TPMCCSequenceComplete:          "SequenceComplete",
	tpm2.TPMCCSequenceUpdate:            "SequenceUpdate",
	tpm2.TPMCCSign:                      "Sign",
	tpm2.TPMCCStartAuthSession:          "StartAuthSession",
	tpm2.TPMCCStartup:                   "Startup",
	tpm2.TPMCCStirRandom:                "StirRandom",
	tpm2.TPMCCTestParms:                 "TestParms",
	tpm2.TPMCCUnseal:                    "Unseal",
	tpm2.TPMCCVerifySignature:           "VerifySignature",
}
