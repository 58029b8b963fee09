package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// socket is the data socket of a software TPM. Each command has a connection of
// its own, as those of tpm2-tss have: swtpm serves one connection at a time, and
// others wait until it ends. So whoever keeps one open keeps everybody out, and
// no wait here is without an end. (/dev/tpmrm0 has no such queue, and the
// kernel's driver bounds each command.)
type socket struct {
	path     string
	patience time.Duration // for an answer to any command but those of slow
}

// patience is for swtpm on the slowest of boards, with several programs at once.
const patience = 30 * time.Second

// slow are the commands that may search for the primes of an RSA key, which
// takes what luck there is; the kernel gives them as long (TPM2_DURATION_LONG_LONG).
var slow = map[tpm2.TPMCC]bool{
	tpm2.TPMCCCreatePrimary: true, tpm2.TPMCCCreate: true, tpm2.TPMCCCreateLoaded: true,
}

const slowPatience = 5 * time.Minute

// openSocket looks whether there is a socket; it connects to nobody.
func openSocket(path string) (*socket, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return nil, &fs.PathError{Op: "connect", Path: path, Err: errors.New("this is no socket")}
	}
	return &socket{path, patience}, nil
}

// Send implements transport.TPM.
func (s *socket) Send(command []byte) ([]byte, error) {
	wait := s.patience
	if len(command) >= headerSize && slow[tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))] {
		wait = max(wait, slowPatience)
	}
	answer, err := s.send(command, time.Now().Add(wait))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = step.As(step.Temporary, "does another program keep a connection to it open? A software TPM serves one at a time (ss -xp shows them)",
			fmt.Errorf("the TPM at %s does not answer within %s", s.path, wait))
	}
	return answer, err
}

// headerSize is that of commands and answers, in bytes: tag, size, code (Part 1, clause 18.2).
const headerSize = 10

// maxAnswer bounds what is read: TPMs of today answer with 4 KiB at most.
const maxAnswer = 64 << 10

func (s *socket) send(command []byte, deadline time.Time) ([]byte, error) {
	c, err := s.dial(deadline)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if _, err := c.Write(command); err != nil {
		return nil, err
	}
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(c, header); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(header[2:])
	if size < headerSize || size > maxAnswer {
		return nil, step.Fail(step.Refused, "the TPM at %s answers with %d bytes", s.path, size)
	}
	answer := make([]byte, size)
	copy(answer, header)
	_, err = io.ReadFull(c, answer[headerSize:])
	return answer, err
}

// dial connects. Go's sockets do not block, so that a full queue (swtpm's has
// room for one) is an error at once, where other programs wait for their turn.
func (s *socket) dial(deadline time.Time) (net.Conn, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		c, err := net.Dial("unix", s.path)
		if !errors.Is(err, syscall.EAGAIN) {
			return c, err
		}
		if time.Now().Add(pause).After(deadline) {
			return nil, os.ErrDeadlineExceeded
		}
		time.Sleep(pause)
	}
}

// Close implements transport.TPMCloser: between two commands nothing is open.
func (s *socket) Close() error { return nil }
