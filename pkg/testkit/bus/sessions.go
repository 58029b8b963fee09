package bus

import (
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Session is a session as a command names it (Part 2, clause 10.13.2).
type Session struct {
	Handle        tpm2.TPMHandle
	Attributes    byte
	Authorization []byte // the HMAC; of a password "session" the password
}

// The attributes of a session that hide a parameter (Part 2, clause 8.4).
const (
	Decrypt = 1 << 5 // the first of the command
	Encrypt = 1 << 6 // the first of the answer
)

// handles is how many handles a command begins with (Part 3, the tables of the
// commands). Those that are not here have none, as far as they have sessions.
var handles = map[tpm2.TPMCC]int{
	tpm2.TPMCCStartAuthSession: 2, tpm2.TPMCCPolicySecret: 2, tpm2.TPMCCPolicyOR: 1,
	tpm2.TPMCCCreatePrimary: 1, tpm2.TPMCCCreate: 1, tpm2.TPMCCCreateLoaded: 1, tpm2.TPMCCLoad: 1,
	tpm2.TPMCCReadPublic: 1, tpm2.TPMCCEvictControl: 2, tpm2.TPMCCUnseal: 1, tpm2.TPMCCObjectChangeAuth: 2,
	tpm2.TPMCCSign: 1, tpm2.TPMCCRSADecrypt: 1, tpm2.TPMCCRSAEncrypt: 1, tpm2.TPMCCECDHZGen: 1,
	tpm2.TPMCCNVReadPublic: 1, tpm2.TPMCCNVRead: 2, tpm2.TPMCCNVWrite: 2, tpm2.TPMCCNVWriteLock: 2,
	tpm2.TPMCCNVDefineSpace: 1, tpm2.TPMCCNVUndefineSpace: 2,
	tpm2.TPMCCHierarchyChanegAuth: 1, tpm2.TPMCCClearControl: 1, tpm2.TPMCCDictionaryAttackLockReset: 1, // [sic]
}

// Code is the code of the command.
func (e Exchange) Code() tpm2.TPMCC { return tpm2.TPMCC(binary.BigEndian.Uint32(e.Command[6:])) }

// RC is the return code of the answer.
func (e Exchange) RC() tpm2.TPMRC { return tpm2.TPMRC(binary.BigEndian.Uint32(e.Answer[6:])) }

// Handle is the n-th handle of the command.
func (e Exchange) Handle(n int) tpm2.TPMHandle {
	return tpm2.TPMHandle(binary.BigEndian.Uint32(e.Command[10+4*n:]))
}

// Split takes a command apart: its sessions, and its parameters.
func (e Exchange) Split() (sessions []Session, parameters []byte, err error) {
	rest := e.Command[10:]
	skip := 4 * handles[e.Code()]
	if len(rest) < skip {
		return nil, nil, fmt.Errorf("command %#x has no %d bytes of handles", e.Code(), skip)
	}
	rest = rest[skip:]
	if binary.BigEndian.Uint16(e.Command) != uint16(tpm2.TPMSTSessions) {
		return nil, rest, nil
	}
	if len(rest) < 4 || len(rest)-4 < int(binary.BigEndian.Uint32(rest)) {
		return nil, nil, fmt.Errorf("command %#x has no whole authorisation area", e.Code())
	}
	end := 4 + binary.BigEndian.Uint32(rest)
	area := rest[4:end]
	for len(area) > 0 {
		auth, err := tpm2.Unmarshal[tpm2.TPMSAuthCommand](area)
		if err != nil {
			return nil, nil, fmt.Errorf("command %#x has a session that cannot be read: %w", e.Code(), err)
		}
		whole := tpm2.Marshal(auth)
		sessions = append(sessions, Session{auth.Handle, whole[4+2+len(auth.Nonce.Buffer)], auth.Authorization.Buffer})
		area = area[len(whole):]
	}
	return sessions, rest[end:], nil
}
