package token

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

const srkHandle = tpm2.TPMHandle(0x81000001)

// testTPM is a swtpm behind a proxy that counts commands.
type testTPM struct {
	t   *testing.T
	dir string
	mu  sync.Mutex
	ccs map[tpm2.TPMCC]int

	// flushFirst makes the proxy flush all objects before one is loaded: enough of a
	// resource manager for tpm2_ptool, which leaves what it loads in the TPM.
	flushFirst atomic.Bool

	// left is how many commands are still answered; below zero, without end.
	// lostReply lets the TPM carry out the one that is not.
	left      atomic.Int64
	lostReply atomic.Bool
}

// newTPM starts an swtpm with an empty state and stops it with the test.
func newTPM(t *testing.T) *testTPM {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Fatalf("%v: scripts/deps installs it", err)
	}
	dir, err := os.MkdirTemp("", "tk") // short: socket paths have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	real := filepath.Join(dir, "sw")
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir,
		"--server", "type=unixio,path="+real, "--ctrl", "type=unixio,path="+real+".ctrl",
		"--flags", "not-need-init,startup-clear")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", real); err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("swtpm listens on no socket")
		}
	}

	s := &testTPM{t: t, dir: dir, ccs: map[tpm2.TPMCC]int{}}
	s.left.Store(-1)
	l, err := net.Listen("unix", s.sock())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	// tpm2-tss wants the control channel beside the data channel.
	if err := os.Symlink(real+".ctrl", s.sock()+".ctrl"); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.serve(c, real) // one at a time, as swtpm itself
		}
	}()
	return s
}

func (s *testTPM) sock() string { return filepath.Join(s.dir, "p") }
func (s *testTPM) tcti() string { return "swtpm:path=" + s.sock() }

// serve passes commands on, one header and body each.
func (s *testTPM) serve(c net.Conn, real string) {
	defer c.Close()
	up, err := net.Dial("unix", real)
	if err != nil {
		return
	}
	defer up.Close()
	pass := func(dst io.Writer, src io.Reader) (uint32, error) {
		b := make([]byte, 10)
		if _, err := io.ReadFull(src, b); err != nil {
			return 0, err
		}
		code := binary.BigEndian.Uint32(b[6:])
		b = append(b, make([]byte, binary.BigEndian.Uint32(b[2:])-10)...)
		if _, err := io.ReadFull(src, b[10:]); err != nil {
			return 0, err
		}
		if cc := tpm2.TPMCC(code); s.flushFirst.Load() && (cc == tpm2.TPMCCLoad || cc == tpm2.TPMCCContextLoad) {
			flushKind(transport.FromReadWriter(up), 0x80000000)
		}
		_, err := dst.Write(b)
		return code, err
	}
	for {
		last := s.left.Load() == 0
		if last && !s.lostReply.Load() {
			return
		}
		cc, err := pass(up, c)
		if err != nil {
			return
		}
		if last {
			s.lostReply.Store(false)
			pass(io.Discard, up)
			return
		}
		if s.left.Load() > 0 {
			s.left.Add(-1)
		}
		s.mu.Lock()
		s.ccs[tpm2.TPMCC(cc)]++
		s.mu.Unlock()
		if _, err := pass(c, up); err != nil {
			return
		}
	}
}

// count returns how many commands f made, and writes them to the log.
func (s *testTPM) count(what string, f func()) {
	s.t.Helper()
	s.mu.Lock()
	s.ccs = map[tpm2.TPMCC]int{}
	s.mu.Unlock()
	start := time.Now()
	f()
	took := time.Since(start)
	s.mu.Lock()
	defer s.mu.Unlock()
	n, list := 0, ""
	for cc, k := range s.ccs {
		n += k
		list += fmt.Sprintf(" 0x%03x×%d", uint32(cc), k)
	}
	s.t.Logf("%-12s %3d commands, %v:%s", what, n, took.Round(time.Millisecond), list)
}

// with opens the TPM for f only: swtpm serves one client at a time.
func (s *testTPM) with(f func(tpm transport.TPM)) {
	s.t.Helper()
	tpm, err := linuxudstpm.Open(s.sock())
	if err != nil {
		s.t.Fatal(err)
	}
	defer tpm.Close()
	f(tpm)
}

func must[T any](t *testing.T) func(v T, err error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// makeSRK makes the storage key of a template and persists it; it returns its name.
func (s *testTPM) makeSRK(template tpm2.TPMTPublic) (name []byte) {
	s.t.Helper()
	s.with(func(tpm transport.TPM) {
		rsp := must[*tpm2.CreatePrimaryResponse](s.t)(tpm2.CreatePrimary{
			PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template),
		}.Execute(tpm))
		must[*tpm2.EvictControlResponse](s.t)(tpm2.EvictControl{
			Auth:             tpm2.TPMRHOwner,
			ObjectHandle:     &tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name},
			PersistentHandle: srkHandle,
		}.Execute(tpm))
		flush(s.t, tpm, rsp.ObjectHandle)
		name = rsp.Name.Buffer
	})
	return name
}

func flush(t *testing.T, tpm transport.TPM, h tpm2.TPMHandle) {
	t.Helper()
	must[*tpm2.FlushContextResponse](t)(tpm2.FlushContext{FlushHandle: h}.Execute(tpm))
}

func srk(t *testing.T, tpm transport.TPM, handle tpm2.TPMHandle) tpm2.AuthHandle {
	t.Helper()
	rsp := must[*tpm2.ReadPublicResponse](t)(tpm2.ReadPublic{ObjectHandle: handle}.Execute(tpm))
	return tpm2.AuthHandle{Handle: handle, Name: rsp.Name, Auth: tpm2.PasswordAuth(nil)}
}

// create makes a child of the SRK and returns its blobs.
func (s *testTPM) create(template tpm2.TPMTPublic, auth, data []byte) (public, private []byte) {
	s.t.Helper()
	s.with(func(tpm transport.TPM) {
		cmd := tpm2.Create{ParentHandle: srk(s.t, tpm, srkHandle), InPublic: tpm2.New2B(template)}
		sens := &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: auth}}
		if data != nil {
			sens.Data = tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: data})
		}
		cmd.InSensitive = tpm2.TPM2BSensitiveCreate{Sensitive: sens}
		rsp := must[*tpm2.CreateResponse](s.t)(cmd.Execute(tpm))
		public, private = tpm2.Marshal(rsp.OutPublic), tpm2.Marshal(rsp.OutPrivate)
	})
	return public, private
}

func (s *testTPM) unseal(public, private, auth []byte) []byte {
	s.t.Helper()
	return s.unsealUnder(srkHandle, public, private, auth)
}

// unsealUnder loads a seal object and returns what it holds.
func (s *testTPM) unsealUnder(parent tpm2.TPMHandle, public, private, auth []byte) (data []byte) {
	s.t.Helper()
	s.with(func(tpm transport.TPM) {
		obj := must[*tpm2.LoadResponse](s.t)(tpm2.Load{
			ParentHandle: srk(s.t, tpm, parent),
			InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](public[2:]),
			InPrivate:    tpm2.TPM2BPrivate{Buffer: private[2:]},
		}.Execute(tpm))
		defer flush(s.t, tpm, obj.ObjectHandle)
		rsp := must[*tpm2.UnsealResponse](s.t)(tpm2.Unseal{ItemHandle: tpm2.AuthHandle{
			Handle: obj.ObjectHandle, Name: obj.Name, Auth: tpm2.PasswordAuth(auth),
		}}.Execute(tpm))
		data = rsp.OutData.Buffer
	})
	return data
}

// flushAll removes all transient objects and sessions.
func flushAll(tpm transport.TPM) {
	for _, kind := range []uint32{0x80000000, 0x02000000, 0x03000000} {
		flushKind(tpm, kind)
	}
}

func flushKind(tpm transport.TPM, kind uint32) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: kind, PropertyCount: 16}.Execute(tpm)
	if err != nil {
		return
	}
	if list, err := rsp.CapabilityData.Data.Handles(); err == nil {
		for _, h := range list.Handle {
			tpm2.FlushContext{FlushHandle: h}.Execute(tpm)
		}
	}
}

func (s *testTPM) lockoutCounter() (n uint32) {
	s.t.Helper()
	s.with(func(tpm transport.TPM) {
		rsp := must[*tpm2.GetCapabilityResponse](s.t)(tpm2.GetCapability{
			Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTLockoutCounter), PropertyCount: 1,
		}.Execute(tpm))
		props := must[*tpm2.TPMLTaggedTPMProperty](s.t)(rsp.CapabilityData.Data.TPMProperties())
		n = props.TPMProperty[0].Value
	})
	return n
}

// The LDevID templates: sign (RSA: and decrypt), null scheme, noDA.
func eccTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true,
			SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
	}
}

func rsaTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true,
			SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true, Decrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048}),
	}
}

func sealTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true},
	}
}

func randomHex(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return fmt.Appendf(nil, "%x", b)
}
