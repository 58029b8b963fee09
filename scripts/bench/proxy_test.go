package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"
)

// fakeTPM says yes to everything.
func fakeTPM(t *testing.T) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "proxy") // shorter than t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for {
			if _, err := readMessage(c); err != nil {
				return
			}
			if _, err := c.Write(yes); err != nil {
				return
			}
		}
	}()
	return socket
}

var (
	yes       = []byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0, 0}
	getRandom = []byte{0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x7b, 0, 16}
)

// A connection of Go code and one of a C library, in one process at once.
func TestProxyTellsWhoAsks(t *testing.T) {
	if blockingSocket(os.Getpid()) {
		// As what it reads or writes, most likely: a process with pipes tells both apart.
		if os.Getenv("TEST_PROXY_PIPES") != "" {
			t.Fatal("this process was given a socket by whoever runs the tests")
		}
		cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "TEST_PROXY_PIPES=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	backend := fakeTPM(t)
	path := backend + "p"
	p, err := StartProxy(path, backend)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()

	ask := func(w interface{ Write([]byte) (int, error) }, r interface{ Read([]byte) (int, error) }) {
		t.Helper()
		if _, err := w.Write(getRandom); err != nil {
			t.Fatal(err)
		}
		if _, err := readMessage(r); err != nil {
			t.Fatal(err)
		}
	}
	goConn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer goConn.Close()
	ask(goConn, goConn)

	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := rawSocket(fd)
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	ask(c, c)
	ask(goConn, goConn) // known from its first command

	commands, err := p.Take()
	if err != nil {
		t.Fatal(err)
	}
	var own []bool
	for _, c := range commands {
		own = append(own, c.Own)
	}
	if want := []bool{true, false, true}; !slices.Equal(own, want) {
		t.Errorf("own: got %v, want %v", own, want)
	}
}

type rawSocket int

func (s rawSocket) Read(b []byte) (int, error)  { return unix.Read(int(s), b) }
func (s rawSocket) Write(b []byte) (int, error) { return unix.Write(int(s), b) }

// What ended processes left loaded is flushed, once, and nothing else is.
func TestSlots(t *testing.T) {
	const object, other, hmac, policy = 0x80000000, 0x80000001, 0x02000000, 0x03000001
	loads := func(code, handle uint32) [2][]byte {
		command, response := make([]byte, headerSize), make([]byte, headerSize+4)
		put(command[6:], code)
		put(response[headerSize:], handle)
		return [2][]byte{command, response}
	}
	takes := func(code, handle uint32) [2][]byte {
		command := make([]byte, headerSize+4)
		put(command[6:], code)
		put(command[headerSize:], handle)
		return [2][]byte{command, make([]byte, headerSize)}
	}
	refused := func(m [2][]byte) [2][]byte {
		put(m[1][6:], uint32(tpm2.TPMRCObjectMemory))
		return m
	}
	for name, c := range map[string]struct {
		messages [][2][]byte
		left     []uint32
	}{
		"nothing":                {nil, nil},
		"a key":                  {[][2][]byte{loads(0x157, object)}, []uint32{object}},
		"a refused key":          {[][2][]byte{refused(loads(0x157, object))}, nil},
		"a flushed key":          {[][2][]byte{loads(0x131, object), takes(0x165, object)}, nil},
		"a saved key stays":      {[][2][]byte{loads(0x191, object), takes(0x162, object)}, []uint32{object}},
		"a saved session is out": {[][2][]byte{loads(0x176, policy), takes(0x162, policy)}, nil},
		"a loaded session":       {[][2][]byte{loads(0x161, policy)}, []uint32{policy}},
		"a sequence":             {[][2][]byte{loads(0x186, other), takes(0x13e, other)}, nil},
		"a persistent key":       {[][2][]byte{takes(0x120, object)}, nil},
		"a session and two keys": {[][2][]byte{loads(0x176, hmac), loads(0x167, object), loads(0x157, other)}, []uint32{hmac, object, other}},
	} {
		t.Run(name, func(t *testing.T) {
			var flushed []uint32
			s := newSlots(func(command []byte) error {
				flushed = append(flushed, uint32(firstHandle(command)))
				return nil
			})
			const pid = 1
			s.clients[pid] = &client{&process{-1}, make(map[tpm2.TPMHandle]bool)} // ends at once
			for _, m := range c.messages {
				s.after(pid, m[0], m[1])
			}
			for range 2 {
				if err := s.before(os.Getpid()); err != nil {
					t.Fatal(err)
				}
			}
			slices.Sort(flushed)
			if !slices.Equal(flushed, c.left) {
				t.Errorf("flushed %s, want %s", handles(flushed), handles(c.left))
			}
			s.close()
		})
	}
}

func put(b []byte, v uint32) { b[0], b[1], b[2], b[3] = byte(v>>24), byte(v>>16), byte(v>>8), byte(v) }

func handles(h []uint32) string { return fmt.Sprintf("%08X", h) }
