package tpm

import (
	"crypto/rand"
	"encoding/binary"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Two commands are here that go-tpm lacks (Part 3, clauses 24.7 and 25.2).

// tagSessions heads a command that carries authorisations.
const tagSessions = 0x8002

// DisableClear makes TPM2_Clear fail from now on, by the authorisation of the
// platform or of the lockout hierarchy: a clear destroys every key under the
// EK and the SRK, and whoever holds the lockout authorisation, empty by
// default, could do it. Only the platform can enable it again.
func (t *TPM) DisableClear(by tpm2.TPMHandle) error {
	if err := t.raw(tpm2.TPMCCClearControl, by, []byte{1}); err != nil {
		return failBy(by, err, "disable TPM2_Clear")
	}
	return nil
}

// ResetLockout sets the counter of failed authorisations to zero.
func (t *TPM) ResetLockout() error {
	if err := t.raw(tpm2.TPMCCDictionaryAttackLockReset, tpm2.TPMRHLockout, nil); err != nil {
		return failBy(tpm2.TPMRHLockout, err, "reset the counter of failed authorisations")
	}
	return nil
}

// raw sends a command of one hierarchy, which its value authorises, and whose
// answer has no parameters.
func (t *TPM) raw(cc tpm2.TPMCC, hierarchy tpm2.TPMHandle, parameters []byte) error {
	session := t.hierarchy(hierarchy).Auth
	if err := session.Init(t.transport); err != nil {
		return err
	}
	if err := session.NewNonceCaller(); err != nil {
		return err
	}
	names := []tpm2.TPM2BName{tpm2.HandleName(hierarchy)}
	auth, err := session.Authorize(cc, parameters, nil, names, 0)
	if err != nil {
		return err
	}
	area := tpm2.Marshal(auth)
	body := binary.BigEndian.AppendUint32(nil, uint32(hierarchy))
	body = binary.BigEndian.AppendUint32(body, uint32(len(area)))
	body = append(append(body, area...), parameters...)

	command := binary.BigEndian.AppendUint16(nil, tagSessions)
	command = binary.BigEndian.AppendUint32(command, uint32(headerSize+len(body)))
	command = binary.BigEndian.AppendUint32(command, uint32(cc))
	answer, err := t.transport.Send(append(command, body...))
	if err != nil {
		return err
	}
	if rc := code(answer); rc != tpm2.TPMRCSuccess {
		_ = session.CleanupFailure(t.transport) // the command's error is the one to tell
		return rc
	}
	// After the header: the size of the parameters, which is zero, then the
	// session's answer.
	if len(answer) < headerSize+4 || binary.BigEndian.Uint32(answer[headerSize:]) != 0 {
		return step.Fail(step.Refused, "the TPM's answer is malformed")
	}
	response, err := tpm2.Unmarshal[tpm2.TPMSAuthResponse](answer[headerSize+4:])
	if err != nil {
		return step.Fail(step.Refused, "the TPM's answer is malformed: %w", err)
	}
	return session.Validate(tpm2.TPMRCSuccess, cc, nil, names, 0, response)
}

// ClosePlatform sets a random authorisation value for the platform hierarchy
// and forgets it. The TPM does as well, at its next reset.
func (t *TPM) ClosePlatform() error {
	if err := t.hidden(); err != nil {
		return err
	}
	value := make([]byte, 32)
	rand.Read(value)
	_, err := protected(t, tpm2.HierarchyChangeAuth{
		// Not by HMAC: the TPM would prove its answer by the new value.
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Name: tpm2.HandleName(tpm2.TPMRHPlatform), Auth: tpm2.PasswordAuth(nil)},
		NewAuth:    tpm2.TPM2BAuth{Buffer: value},
	})
	if err != nil {
		return failBy(tpm2.TPMRHPlatform, err, "close the platform hierarchy")
	}
	return nil
}
