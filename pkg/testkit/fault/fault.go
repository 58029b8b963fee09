// Package fault spoils the way to a TPM, for tests: it loses an answer, refuses
// what is too large, and changes or records what crosses the bus.
package fault

import (
	"encoding/binary"
	"errors"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Loser loses one answer: the TPM has executed the command, and all goes on.
type Loser struct {
	TPM transport.TPM
	// At is the number of the command, from 1 on, whose answer is lost; 0: none.
	At int
	// Sent counts the commands.
	Sent int
}

// Send passes a command on, and its answer but for one.
func (l *Loser) Send(command []byte) ([]byte, error) {
	l.Sent++
	answer, err := l.TPM.Send(command)
	if l.Sent == l.At && err == nil {
		return nil, errors.New("answer lost")
	}
	return answer, err
}

// nvWriteHead is what a TPM2_NV_Write with the empty authorisation value has
// besides its data: header, two handles, authorisation area, size and offset.
const nvWriteHead = 10 + 8 + 4 + 9 + 2 + 2

// Small is a TPM whose NV buffer takes less than swtpm's: larger reads and
// writes are refused as a TPM refuses them.
type Small struct {
	TPM    transport.TPM
	Buffer int
}

// Send passes a command on, if it is small enough.
func (s Small) Send(command []byte) ([]byte, error) {
	switch code, tail := Code(command), command[max(0, len(command)-4):]; {
	case code == tpm2.TPMCCNVRead && int(binary.BigEndian.Uint16(tail)) > s.Buffer:
		return Failure(tpm2.TPMRCValue + 0x140), nil // of the first parameter
	case code == tpm2.TPMCCNVWrite && len(command)-nvWriteHead > s.Buffer:
		return Failure(tpm2.TPMRCSize + 0x140), nil
	}
	return s.TPM.Send(command)
}

// Tap sees every command and its answer, and may change the answer.
type Tap struct {
	TPM    transport.TPM
	Answer func(code tpm2.TPMCC, command, answer []byte) []byte
}

// Send passes a command on and its answer through Answer.
func (t Tap) Send(command []byte) ([]byte, error) {
	answer, err := t.TPM.Send(command)
	if err != nil {
		return nil, err
	}
	return t.Answer(Code(command), command, answer), nil
}

// Code is the command code of a command.
func Code(command []byte) tpm2.TPMCC {
	if len(command) < 10 {
		return 0
	}
	return tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
}

// Failure is an answer that holds no more than a return code.
func Failure(rc tpm2.TPMRC) []byte {
	answer := []byte{0x80, 0x01, 0, 0, 0, 10}
	return binary.BigEndian.AppendUint32(answer, uint32(rc))
}
