// Package bus stands between a software TPM and the programs that use it, for
// tests: it sees and records every command and its answer, whoever sends it,
// the PKCS#11 library as well as ours, and may change the answers.
package bus

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// Exchange is one command and its answer, as they crossed the bus.
type Exchange struct {
	PID             int // of the process that sent it
	Command, Answer []byte
}

// Proxy has sockets like those of an swtpm.
type Proxy struct {
	Dir    string // with the sockets in it, and nothing else
	Socket string // the data socket; the control socket has .ctrl appended

	upstream string
	answer   func(Exchange) []byte // nil: none is changed

	mu    sync.Mutex
	crowd sync.WaitGroup
	open  map[net.Conn]bool
	log   []Exchange
}

// Listen stands in front of the swtpm whose data socket is given, until the
// test ends. answer may change an answer, while the sender of the command waits
// and the TPM is free.
func Listen(t testing.TB, upstream string, answer func(Exchange) []byte) *Proxy {
	t.Helper()
	// The path of a Unix socket has 107 bytes at most.
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Dir: dir, Socket: filepath.Join(dir, "s"), upstream: upstream, answer: answer, open: map[net.Conn]bool{}}
	data, err := net.Listen("unix", p.Socket)
	if err != nil {
		t.Fatal(err)
	}
	control, err := net.Listen("unix", p.Socket+".ctrl")
	if err != nil {
		t.Fatal(err)
	}
	p.crowd.Add(2)
	go p.accept(data, p.commands)
	go p.accept(control, p.control)
	t.Cleanup(func() {
		data.Close()
		control.Close()
		p.hangUp()
		p.crowd.Wait()
		os.RemoveAll(dir)
	})
	return p
}

// Log is what has crossed the bus so far.
func (p *Proxy) Log() []Exchange {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log[:len(p.log):len(p.log)]
}

func (p *Proxy) accept(l net.Listener, serve func(client net.Conn)) {
	defer p.crowd.Done()
	for {
		client, err := l.Accept()
		if err != nil {
			return // closed
		}
		p.remember(client)
		p.crowd.Add(1)
		go func() {
			defer p.crowd.Done()
			defer p.forget(client)
			serve(client)
		}()
	}
}

func (p *Proxy) remember(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[c] = true
}

func (p *Proxy) forget(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
	c.Close()
}

func (p *Proxy) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		c.Close()
	}
}

// commands passes commands on, until the client hangs up or the TPM is gone.
func (p *Proxy) commands(client net.Conn) {
	pid := sender(client)
	for {
		e := Exchange{PID: pid}
		var err error
		if e.Command, err = message(client); err != nil {
			return
		}
		if e.Answer, err = p.send(e.Command); err != nil {
			return
		}
		if p.answer != nil {
			e.Answer = p.answer(e)
		}
		p.mu.Lock()
		p.log = append(p.log, e)
		p.mu.Unlock()
		if _, err := client.Write(e.Answer); err != nil {
			return
		}
		// Who gets less than the answer says would wait for the rest, as nobody
		// does who reads a device.
		if len(e.Answer) < 10 || binary.BigEndian.Uint32(e.Answer[2:]) != uint32(len(e.Answer)) {
			return
		}
	}
}

// send has the TPM execute a command, which is its for no longer than that.
func (p *Proxy) send(command []byte) ([]byte, error) {
	tpm, err := net.Dial("unix", p.upstream)
	if err != nil {
		return nil, err
	}
	p.remember(tpm)
	defer p.forget(tpm)
	if _, err := tpm.Write(command); err != nil {
		return nil, err
	}
	return message(tpm)
}

// message reads a command or an answer: both say their size behind the tag.
func message(c net.Conn) ([]byte, error) {
	head := make([]byte, 10)
	if _, err := io.ReadFull(c, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[2:])
	if size < 10 || size > 1<<16 {
		return nil, io.ErrUnexpectedEOF
	}
	whole := make([]byte, size)
	copy(whole, head)
	_, err := io.ReadFull(c, whole[10:])
	return whole, err
}

// control is a line that nobody looks at.
func (p *Proxy) control(client net.Conn) {
	tpm, err := net.Dial("unix", p.upstream+".ctrl")
	if err != nil {
		return // the client sees that the line is dead
	}
	p.remember(tpm)
	defer p.forget(tpm)
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(tpm, client)
		tpm.Close()
	}()
	io.Copy(client, tpm)
	client.Close()
	<-done
}

// sender is the process at the other end, or 0.
func sender(c net.Conn) int {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	err = raw.Control(func(fd uintptr) {
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	if err != nil {
		return 0
	}
	return pid
}
