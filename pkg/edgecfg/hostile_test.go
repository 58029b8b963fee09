package edgecfg

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Whoever listens on keyd's socket: the run ends, and says what came from there.
func TestHostileKeyd(t *testing.T) {
	again := func(begin, piece string) func(net.Conn) {
		return func(c net.Conn) {
			fmt.Fprint(c, begin)
			for {
				if _, err := c.Write(bytes.Repeat([]byte(piece), 100)); err != nil {
					return
				}
			}
		}
	}
	once := func(text string) func(net.Conn) { return func(c net.Conn) { fmt.Fprint(c, text) } }
	for name, test := range map[string]struct {
		serve func(net.Conn)
		says  string
	}{
		"silence":              {func(c net.Conn) { io.Copy(io.Discard, c) }, "deadline"},
		"nothing":              {once(""), "EOF"},
		"garbage":              {once("\x00\x01\x02\x03garbage\r\n\r\n"), "malformed HTTP"},
		"headers without end":  {again("HTTP/1.1 200 OK\r\n", "X: y\r\n"), "header"},
		"header without end":   {again("HTTP/1.1 200 OK\r\nX: ", "y"), "header"},
		"error without end":    {again("HTTP/1.1 500 No\r\n\r\n", "no"), "keyd answered 500"},
		"half an answer":       {once("HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{"), "EOF"},
		"redirect":             {once("HTTP/1.1 302 Found\r\nLocation: http://other/\r\nContent-Length: 0\r\n\r\n"), "keyd answered 302"},
		"informational answer": {again("", "HTTP/1.1 103 Early Hints\r\n\r\n"), "1xx|header"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDevice(t, "dps")
			d.install("iotedge")
			asked := listenAsKeyd(t, d.root, test.serve)
			begin := time.Now()
			err := d.run()
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
			if err == nil || step.ClassOf(err) != step.Unavailable || !strings.Contains(step.HintOf(err), "journalctl -u aziot-keyd") {
				t.Fatalf("class %d: %v (%s)", step.ClassOf(err), err, step.HintOf(err))
			}
			said := false
			for _, words := range strings.Split(test.says, "|") {
				said = said || strings.Contains(err.Error(), words)
			}
			if !said || !strings.Contains(err.Error(), "cannot use the agent's key") || len(err.Error()) > 1000 {
				t.Errorf("it says %v, want %q", err, test.says)
			}
			if row := d.row("apply"); row.State != step.Partial {
				t.Errorf("apply is %s", row.State)
			}
			if len(asked) == 0 {
				t.Error("nobody asked")
			}
		})
	}
}

// listenAsKeyd has each connection to keyd's socket served, once it has been asked something.
func listenAsKeyd(t *testing.T, root string, serve func(net.Conn)) chan struct{} {
	t.Helper()
	socket := filepath.Join(root, "run/aziot/keyd.sock")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 1000)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
					return
				}
				select {
				case asked <- struct{}{}:
				default:
				}
				serve(c)
			}()
		}
	}()
	return asked
}

// The agent's own program may print for ever, or never end: it is killed when the time is over, and of
// what it said the end is told.
func TestHostileTool(t *testing.T) {
	for _, manner := range []string{"endless", "silent"} {
		t.Run(manner, func(t *testing.T) {
			t.Parallel()
			d := newDevice(t, "dps")
			d.install("iotedge")
			d.file("stand-in/manner", manner, 0o600)
			p := d.program()
			w, err := p.want()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			begin := time.Now()
			err = p.run(ctx, w.secrets(), p.tool(), "config", "apply")
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
			if err == nil || !strings.Contains(err.Error(), "iotedge config apply: it did not end in time, and was killed") || len(err.Error()) > maxOutput+500 {
				t.Errorf("got %v", err)
			}
			if strings.Contains(fmt.Sprint(err), pin) || strings.Contains(fmt.Sprint(err), "still at it") != (manner == "endless") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// One that leaves a process behind, with its standard output, has done its work all the same.
func TestToolThatLeavesSomebody(t *testing.T) {
	t.Parallel()
	d := newDevice(t, "dps")
	d.install("iotedge")
	d.file("stand-in/manner", "leaves somebody", 0o600)
	serveKeyd(t, d.root, always(http.StatusOK))
	err := d.run()
	if pid, errPID := strconv.Atoi(d.read("stand-in/pid")); errPID == nil {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		t.Error(err)
	}
}
