package edgecfg

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/limit"
)

// FuzzDaemonFile: the files of the agent's daemons, and what identityd keeps, are others' to
// write. None of it is told, because some of it is secret.
func FuzzDaemonFile(f *testing.F) {
	f.Add([]byte("hostname = 'x'\n[provisioning]\nsource = 'dps'\n[provisioning.attestation]\nregistration_id = { CN = 'board-1' }\n"))
	f.Add([]byte("[preloaded_keys]\n\"device-id\" = 'pkcs11:token=edge;object=ldevid?pin-value=0123'\n"))
	f.Add([]byte("a.b.c.d = [[[[[[[1]]]]]]]"))
	f.Add([]byte("unprovisioned"))
	s := (&inputs{deviceID: "board-1"}).base()
	s.attestation.issued = &issuedCert{commonName: "board-1"}
	s.est = &certIssuance{url: "https://est.example/.well-known/est"}
	f.Fuzz(func(t *testing.T, data []byte) {
		defer limit.Time(t, 5*time.Second)()
		path := filepath.Join(t.TempDir(), "00-super.toml")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		tree, err := readTOML(path)
		if err != nil {
			t.Fatalf("it is there: %v", err)
		}
		for _, e := range s.expected() {
			v := lookup(tree, e.key)
			if !sameValue(v, v) || sameValue(v, e.value) != sameValue(e.value, v) {
				t.Errorf("%s: %q and %q", e.key, v, e.value)
			}
			if again := normal(normal(v)); again != normal(v) && !strings.HasPrefix(v, "pkcs11:") {
				t.Errorf("%q is %q in its normal form, and %q in that one's", v, normal(v), again)
			}
		}
	})
}

// scripted is a connection to a server that answers the same to any request.
type scripted struct {
	net.Conn
	answer *bytes.Reader
	asked  chan struct{}
	once   sync.Once
}

func (c *scripted) Write(b []byte) (int, error) {
	c.once.Do(func() { close(c.asked) })
	return len(b), nil
}

func (c *scripted) Read(b []byte) (int, error) {
	<-c.asked
	return c.answer.Read(b)
}

func (c *scripted) Close() error {
	c.once.Do(func() { close(c.asked) })
	return nil
}

// FuzzKeyd: whoever listens on keyd's socket, the key is good only if the answer says so.
func FuzzKeyd(f *testing.F) {
	f.Add(true, []byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 31\r\n\r\n{\"keyHandle\":\"sr=/x&kid=y&sig\"}"))
	f.Add(false, []byte("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"))
	f.Add(true, []byte("HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"))
	f.Add(true, []byte("HTTP/1.1 302 Found\r\nLocation: http://other/keypair\r\n\r\n"))
	f.Add(true, []byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"))
	f.Fuzz(func(t *testing.T, preloaded bool, answer []byte) {
		defer limit.Time(t, 5*time.Second)()
		var conns []net.Conn
		client := keydClient(func(context.Context, string, string) (net.Conn, error) {
			c := &scripted{answer: bytes.NewReader(answer), asked: make(chan struct{})}
			conns = append(conns, c)
			return c, nil
		})
		err := askOnce(t.Context(), client, "device-id", preloaded)
		if err == nil && !bytes.HasPrefix(answer, []byte("HTTP/")) {
			t.Errorf("%q was taken for an answer of keyd", answer)
		}
		if err == nil && preloaded && !bytes.Contains(answer, []byte("200")) {
			t.Errorf("%q was taken for a key", answer)
		}
		if len(conns) > 2 {
			t.Errorf("%d connections", len(conns))
		}
	})
}

// FuzzOutput: what a program of others printed is told in one bounded line, without any secret
// of the configuration, whole or in part.
func FuzzOutput(f *testing.F) {
	f.Add([]byte("Error: cannot apply pin-value="+pin), uint16(0))
	f.Add([]byte(pin), uint16(2*maxOutput-8))
	f.Add([]byte(pin+strings.Repeat(" \n", maxOutput-len(pin)/4)), uint16(7)) // its first half is dropped
	f.Add([]byte("correct\n\t horse"), uint16(0))
	f.Add([]byte("\xff\xfe"+password+"\x00"), uint16(3))
	f.Fuzz(func(t *testing.T, said []byte, cut uint16) {
		defer limit.Time(t, 5*time.Second)()
		var whole, parts tail
		whole.Write(said)
		n := min(int(cut), len(said))
		parts.Write(said[:n])
		parts.Write(said[n:])
		line := whole.without(pin, percentEncode(pin), password)
		if again := parts.without(pin, percentEncode(pin), password); again != line {
			t.Errorf("in two writes %q, in one %q", again, line)
		}
		if len(line) > maxOutput+len("…") || !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("no line: %q", line)
		}
		if strings.Contains(line, pin) || strings.Contains(line, password) || strings.Contains(line, percentEncode(pin)) {
			t.Errorf("a secret is in %q", line)
		}
		// The end of a secret whose beginning was dropped.
		if end := pin[len(pin)/2:]; strings.HasPrefix(line, end) && whole.cut && strings.Contains(string(said), pin) {
			t.Errorf("half a secret is in %q", line)
		}
	})
}
