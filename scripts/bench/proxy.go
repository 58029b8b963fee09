package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/google/go-tpm/tpm2"
)

// controlSuffix is what tpm2-tss puts behind the path of an swtpm's data
// socket to get that of its control socket.
const controlSuffix = ".ctrl"

// Proxy stands between an swtpm and its clients: it counts their commands, and
// does what a resource manager does when one of them exits (see [slots]). Both
// contenders go through it.
//
// A client may open a connection for each command, as go-tpm and tpm2-tss 3
// do, or keep one. The proxy itself keeps one connection to the swtpm.
type Proxy struct {
	control string // the swtpm's control socket
	data    net.Listener
	ctrl    net.Listener
	done    sync.WaitGroup

	mu    sync.Mutex // one command at a time, as a TPM wants it
	tpm   net.Conn
	slots *slots
	log   []Command
	err   error // why commands may be missing in log
	conns map[net.Conn]bool
	shut  bool
}

// StartProxy listens on path and on its control socket, for the swtpm whose
// data socket is backend.
func StartProxy(path, backend string) (*Proxy, error) {
	p := &Proxy{control: backend + controlSuffix, conns: make(map[net.Conn]bool)}
	var err error
	if p.tpm, err = net.Dial("unix", backend); err != nil {
		return nil, fmt.Errorf("cannot reach swtpm: %w", err)
	}
	p.slots = newSlots(func(command []byte) error {
		_, err := exchange(p.tpm, command)
		return err
	})
	if p.data, err = net.Listen("unix", path); err != nil {
		p.tpm.Close()
		return nil, fmt.Errorf("cannot start the TPM proxy: %w", err)
	}
	if p.ctrl, err = net.Listen("unix", path+controlSuffix); err != nil {
		p.tpm.Close()
		p.data.Close()
		return nil, fmt.Errorf("cannot start the TPM proxy: %w", err)
	}
	p.serve(p.data, p.serveData)
	p.serve(p.ctrl, p.serveControl)
	return p, nil
}

// Take returns the commands since the last Take. It is an error if the proxy
// has failed a client since then; that a client left is the client's affair.
func (p *Proxy) Take() ([]Command, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := p.log, p.err
	p.log, p.err = nil, nil
	return log, err
}

// Close ends all connections.
func (p *Proxy) Close() {
	p.data.Close()
	p.ctrl.Close()
	p.mu.Lock()
	p.shut = true
	p.tpm.Close()
	for c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.done.Wait()
	p.slots.close()
}

func (p *Proxy) serve(l net.Listener, each func(*net.UnixConn)) {
	p.done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			p.done.Go(func() {
				defer c.Close()
				if p.admit(c) {
					each(c.(*net.UnixConn))
				}
				p.dismiss(c)
			})
		}
	})
}

func (p *Proxy) admit(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = true
	return !p.shut
}

func (p *Proxy) dismiss(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// serveData passes commands on. A client may leave without a command: tpm2-tss
// tries in this way whether somebody listens.
func (p *Proxy) serveData(c *net.UnixConn) {
	pid, err := peer(c)
	if err != nil {
		p.fail(err)
		return
	}
	own := false
	for first := true; ; first = false {
		command, err := readMessage(c)
		if err != nil {
			return
		}
		if first {
			own = !blockingSocket(pid)
		}
		response, err := p.pass(pid, own, command)
		if err != nil {
			p.fail(err)
			return
		}
		if _, err := c.Write(response); err != nil {
			return
		}
	}
}

func (p *Proxy) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = errors.Join(p.err, err)
}

func (p *Proxy) pass(pid int, own bool, command []byte) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.slots.before(pid); err != nil {
		return nil, err
	}
	response, err := exchange(p.tpm, command)
	if err != nil {
		return nil, err
	}
	p.slots.after(pid, command, response)
	entry := classify(command, response)
	entry.Own = own
	p.log = append(p.log, entry)
	return response, nil
}

// Send sends a command of the benchmark's own, which is not counted.
func (p *Proxy) Send(command []byte) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return exchange(p.tpm, command)
}

// serveControl joins a client with the swtpm's control socket. Nothing that
// passes here is a TPM command.
func (p *Proxy) serveControl(c *net.UnixConn) {
	s, err := net.Dial("unix", p.control)
	if err != nil {
		p.fail(fmt.Errorf("cannot reach swtpm: %w", err))
		return
	}
	defer s.Close()
	go func() {
		_, _ = io.Copy(c, s) // ends with either side
		c.Close()
	}()
	_, _ = io.Copy(s, c)
}

// exchange sends one command and reads its response.
func exchange(tpm net.Conn, command []byte) ([]byte, error) {
	if _, err := tpm.Write(command); err != nil {
		return nil, fmt.Errorf("cannot send %s to swtpm: %w", nameOf(codeOf(command)), err)
	}
	response, err := readMessage(tpm)
	if err != nil {
		return nil, fmt.Errorf("cannot read swtpm's answer to %s: %w", nameOf(codeOf(command)), err)
	}
	return response, nil
}

// readMessage reads one command or response.
func readMessage(r io.Reader) ([]byte, error) {
	// No TPM takes or gives more at a time (TPM_PT_MAX_COMMAND_SIZE).
	const limit = 4096
	header := make([]byte, headerSize, limit)
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, err
	}
	size := sizeOf(header)
	if size < headerSize || size > limit {
		return nil, fmt.Errorf("a message of %d bytes", size)
	}
	message := header[:size]
	if _, err := io.ReadFull(r, message[headerSize:]); err != nil {
		return nil, err
	}
	return message, nil
}

// flushCommand ends an object or a session.
func flushCommand(handle tpm2.TPMHandle) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	b = binary.BigEndian.AppendUint32(b, headerSize+4)
	b = binary.BigEndian.AppendUint32(b, uint32(tpm2.TPMCCFlushContext))
	return binary.BigEndian.AppendUint32(b, uint32(handle))
}
