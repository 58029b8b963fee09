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
	// Answer may change an answer; nil changes none. It is called for one command
	// at a time, while its sender waits.
	Answer func(Exchange) []byte

	mu    sync.Mutex
	crowd sync.WaitGroup
	open  map[net.Conn]bool
	log   []Exchange
}

// Listen stands in front of the swtpm whose data socket is given, until the
// test ends.
func Listen(t testing.TB, upstream string, answer func(Exchange) []byte) *Proxy {
	t.Helper()
	// The path of a Unix socket has 107 bytes at most.
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Dir: dir, Socket: filepath.Join(dir, "s"), upstream: upstream, Answer: answer, open: map[net.Conn]bool{}}
	data, err := net.Listen("unix", p.Socket)
	if err != nil {
		t.Fatal(err)
	}
	control, err := net.Listen("unix", p.Socket+".ctrl")
	if err != nil {
		t.Fatal(err)
	}
	p.crowd.Add(2)
	go p.accept(data, upstream, p.commands)
	go p.accept(control, upstream+".ctrl", through)
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

func (p *Proxy) accept(l net.Listener, upstream string, serve func(client, tpm net.Conn)) {
	defer p.crowd.Done()
	for {
		client, err := l.Accept()
		if err != nil {
			return // closed
		}
		p.crowd.Add(1)
		go func() {
			defer p.crowd.Done()
			defer p.forget(client)
			tpm, err := net.Dial("unix", upstream)
			if err != nil {
				return // the client sees that the line is dead
			}
			defer p.forget(tpm)
			p.remember(client, tpm)
			serve(client, tpm)
		}()
	}
}

func (p *Proxy) remember(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		p.open[c] = true
	}
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

// commands passes commands on, one at a time on a connection, as TPMs take them.
func (p *Proxy) commands(client, tpm net.Conn) {
	pid := sender(client)
	for {
		e := Exchange{PID: pid}
		var err error
		if e.Command, err = message(client); err != nil {
			return
		}
		if _, err = tpm.Write(e.Command); err != nil {
			return
		}
		if e.Answer, err = message(tpm); err != nil {
			return
		}
		if p.Answer != nil {
			e.Answer = p.Answer(e)
		}
		p.mu.Lock()
		p.log = append(p.log, e)
		p.mu.Unlock()
		if _, err := client.Write(e.Answer); err != nil {
			return
		}
	}
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

// through is a line that nobody looks at.
func through(client, tpm net.Conn) {
	done := make(chan struct{})
	go func() {
		io.Copy(tpm, client)
		tpm.Close()
		close(done)
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
