package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/fault"
)

// Bus is the way to a software TPM, for whoever opens it by a socket: it counts
// the commands and cuts the power at one of them. The socket is "s" in its
// directory, and the TPM's control socket "s.ctrl".
type Bus struct {
	dir, target string
	listeners   []net.Listener
	open        sync.WaitGroup

	mu       sync.Mutex
	cut      Point
	power    func()
	commands []tpm2.TPMCC
	conns    map[net.Conn]bool // nil once it is closed
}

// NewBus lays a bus to the TPM whose data socket is at target. At the point,
// power is called, which must end the TPM and all that uses it; the answer to
// the command reaches nobody.
func NewBus(dir, target string, cut Point, power func()) (*Bus, error) {
	b := &Bus{dir: dir, target: target, cut: cut, power: power, conns: map[net.Conn]bool{}}
	for name, serve := range map[string]func(client, tpm net.Conn){"s": b.data, "s.ctrl": b.control} {
		_ = os.Remove(filepath.Join(dir, name))
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			b.Close()
			return nil, fmt.Errorf("cannot lay a bus to the TPM: %w", err)
		}
		b.listeners = append(b.listeners, l)
		b.open.Go(func() { b.accept(l, target+name[1:], serve) })
	}
	return b, nil
}

// Close takes the bus away and waits until nothing is on it.
func (b *Bus) Close() {
	for _, l := range b.listeners {
		l.Close()
	}
	b.mu.Lock()
	for c := range b.conns {
		c.Close()
	}
	b.conns = nil
	b.mu.Unlock()
	b.open.Wait()
}

// Commands are those that were sent, in order.
func (b *Bus) Commands() []tpm2.TPMCC {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]tpm2.TPMCC(nil), b.commands...)
}

func (b *Bus) accept(l net.Listener, target string, serve func(client, tpm net.Conn)) {
	for {
		client, err := l.Accept()
		if err != nil {
			return
		}
		b.open.Go(func() {
			defer client.Close()
			tpm, err := dial(target)
			if err != nil {
				return // as a TPM that is not there
			}
			defer tpm.Close()
			if b.enter(client, tpm) {
				serve(client, tpm)
			}
		})
	}
}

// dial connects to swtpm, whose queue of those that wait is one long: go-tpm
// connects anew for each command, and is quicker than swtpm sees that the last
// connection has ended.
func dial(target string) (net.Conn, error) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("unix", target)
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(end) {
			return c, err
		}
	}
}

func (b *Bus) enter(conns ...net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range conns {
		if b.conns == nil {
			return false
		}
		b.conns[c] = true
	}
	return true
}

// control passes on what is no command.
func (b *Bus) control(client, tpm net.Conn) {
	b.open.Go(func() {
		_, _ = io.Copy(client, tpm)
		client.Close()
	})
	_, _ = io.Copy(tpm, client)
}

// buffer is the NV buffer of the TPM on the bus, in bytes: so small that a
// certificate is written in pieces.
const buffer = 256

// wire sends one command after another.
type wire struct{ net.Conn }

func (w wire) Send(command []byte) ([]byte, error) {
	if _, err := w.Write(command); err != nil {
		return nil, err
	}
	return message(w)
}

// data passes commands on, and their answers.
func (b *Bus) data(client, tpm net.Conn) {
	small := fault.Small{TPM: wire{tpm}, Buffer: buffer}
	for {
		command, err := message(client)
		if err != nil {
			return
		}
		n := b.count(command)
		if b.cut.hits(n, false) {
			b.power()
			return
		}
		answer, err := small.Send(command)
		if err != nil {
			return
		}
		if b.cut.hits(n, true) {
			b.power()
			return
		}
		if _, err := client.Write(answer); err != nil {
			return
		}
	}
}

func (b *Bus) count(command []byte) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.commands = append(b.commands, tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])))
	return len(b.commands)
}

// message reads a command or an answer: tag, size of the whole, code, the rest
// (TPM 2.0 Library Part 1, clause 18).
func message(r io.Reader) ([]byte, error) {
	data := make([]byte, 10)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(data[2:])
	if size < 10 || size > 1<<16 {
		return nil, fmt.Errorf("a message of %d bytes", size)
	}
	data = append(data, make([]byte, size-10)...)
	_, err := io.ReadFull(r, data[10:])
	return data, err
}
