package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/fault"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
)

// The two constants of the high range's policy prove each other: policyB is
// the PolicyOR of policyA and policyC (Part 3, clause 23.6).
func TestPolicyB(t *testing.T) {
	h := sha256.New()
	h.Write(make([]byte, sha256.Size))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMCCPolicyOR)))
	h.Write(policyA())
	h.Write(policyC)
	if !bytes.Equal(h.Sum(nil), policyB) {
		t.Error("policyB is not the OR of its branches")
	}
}

// storage makes an SRK at its handle.
func storage(t testing.TB, tpm *TPM) Parent {
	t.Helper()
	l, err := tpm.CreatePrimary(tpm2.TPMRHOwner, SRKTemplate)
	if err != nil {
		t.Fatal(err)
	}
	if err := tpm.Persist(l, HandleSRK); err != nil {
		t.Fatal(err)
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	k, err := tpm.ReadPublic(HandleSRK)
	if err != nil {
		t.Fatal(err)
	}
	return Parent{Key: k}
}

// key makes a DevID key at the LDevID's handle, with the empty value.
func key(t *testing.T, tpm *TPM, parent Parent, rsa bool) *Key {
	t.Helper()
	l, _, err := tpm.CreateChild(parent, DevIDTemplate(rsa), Sensitive{})
	if err != nil {
		t.Fatal(err)
	}
	if err := tpm.Persist(l, HandleLDevID); err != nil {
		t.Fatal(err)
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	k, err := tpm.ReadPublic(HandleLDevID)
	if err != nil {
		t.Fatal(err)
	}
	if !k.ChildOf(parent.Key, tpm2.TPMRHOwner) || k.ChildOf(parent.Key, tpm2.TPMRHEndorsement) {
		t.Error("the qualified name does not prove the parent")
	}
	if !k.Matches(DevIDTemplate(rsa)) || k.Matches(DevIDTemplate(!rsa)) || k.Matches(SRKTemplate) {
		t.Error("the key does not match its template, or matches another")
	}
	return k
}

func TestSigner(t *testing.T) {
	for _, algorithm := range []string{"ECC", "RSA"} {
		t.Run(algorithm, func(t *testing.T) {
			t.Parallel()
			tpm := New(tpmkit.Start(t).Open(t), Secrets{})
			defer tpm.Close()
			k := key(t, tpm, storage(t, tpm), algorithm == "RSA")
			s, err := tpm.Signer(k)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
				d := h.New()
				d.Write([]byte("message"))
				digest := d.Sum(nil)
				signature, err := s.Sign(rand.Reader, digest, h)
				if err != nil {
					t.Fatal(err)
				}
				switch public := s.Public().(type) {
				case *ecdsa.PublicKey:
					if !ecdsa.VerifyASN1(public, digest, signature) {
						t.Errorf("%v: wrong signature", h)
					}
					continue
				case *rsa.PublicKey:
					if err := rsa.VerifyPKCS1v15(public, h, digest, signature); err != nil {
						t.Errorf("%v: %v", h, err)
					}
					options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
					if signature, err = s.Sign(rand.Reader, digest, options); err != nil {
						t.Fatal(err)
					}
					if err := rsa.VerifyPSS(public, h, digest, signature, options); err != nil {
						t.Errorf("%v, PSS: %v", h, err)
					}
				}
			}
			if _, err := s.Sign(rand.Reader, make([]byte, 20), crypto.SHA1); err == nil {
				t.Error("SHA-1 was signed")
			}
			if _, err := s.Sign(rand.Reader, make([]byte, 20), crypto.SHA256); err == nil {
				t.Error("a digest of another length was signed")
			}
		})
	}
}

// A TPM whose PSS signatures have another salt: the raw operation makes one
// that TLS takes.
func TestSignerRawPSS(t *testing.T) {
	t.Parallel()
	raw := 0
	tpm := New(fault.Tap{TPM: tpmkit.Start(t).Open(t), Answer: func(code tpm2.TPMCC, command, answer []byte) []byte {
		switch code {
		case tpm2.TPMCCSign:
			answer[len(answer)-20] ^= 1 // no longer what it says it is
		case tpm2.TPMCCRSADecrypt:
			raw++
		}
		return answer
	}}, Secrets{})
	defer tpm.Close()
	s, err := tpm.Signer(key(t, tpm, storage(t, tpm), true))
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("message"))
	options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	signature, err := s.Sign(rand.Reader, digest[:], options)
	if err != nil {
		t.Fatal(err)
	}
	if err := rsa.VerifyPSS(s.Public().(*rsa.PublicKey), crypto.SHA256, digest[:], signature, options); err != nil || raw != 1 {
		t.Errorf("%d raw operations: %v", raw, err)
	}
	// There is no second way for PKCS #1: a wrong signature is not given out.
	if _, err := s.Sign(rand.Reader, digest[:], crypto.SHA256); err == nil || step.ClassOf(err) != step.Refused {
		t.Errorf("a wrong signature was given out: %v", err)
	}
}

// A TPM of a revision before 1.38 has no TPM2_CreateLoaded.
func TestCreateChildOnOldTPM(t *testing.T) {
	t.Parallel()
	tpm := New(oldTPM{tpmkit.Start(t).Open(t)}, Secrets{})
	defer tpm.Close()
	parent := storage(t, tpm)
	l, blob, err := tpm.CreateChild(parent, DevIDTemplate(false), Sensitive{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	again, err := tpm.Load(parent, blob)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Name, l.Name) {
		t.Error("the blob is of another key")
	}
	if err := again.Flush(); err != nil {
		t.Fatal(err)
	}
}

type oldTPM struct {
	next interface{ Send([]byte) ([]byte, error) }
}

func (o oldTPM) Send(command []byte) ([]byte, error) {
	if fault.Code(command) == tpm2.TPMCCCreateLoaded {
		return fault.Failure(tpm2.TPMRCCommandCode), nil
	}
	return o.next.Send(command)
}

// What must stay secret does not cross the bus in clear, once there is a key to
// hide it from others with.
func TestBus(t *testing.T) {
	t.Parallel()
	var bus bytes.Buffer
	tpm := New(fault.Tap{TPM: tpmkit.Start(t).Open(t), Answer: func(_ tpm2.TPMCC, command, answer []byte) []byte {
		bus.Write(command)
		bus.Write(answer)
		return answer
	}}, Secrets{})
	defer tpm.Close()
	parent := storage(t, tpm)
	auth, data := []byte("an authorisation value of a key!"), []byte("what is sealed, for the owner only")
	work := func() {
		t.Helper()
		bus.Reset()
		l, _, err := tpm.CreateChild(parent, DevIDTemplate(false), Sensitive{Auth: auth})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Flush(); err != nil {
			t.Fatal(err)
		}
		blob, err := tpm.Seal(parent, SealTemplate(), Sensitive{Auth: auth, Data: data})
		if err != nil {
			t.Fatal(err)
		}
		got, err := tpm.Unseal(parent, blob, auth)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("unsealed %q, %v", got, err)
		}
		if _, err := tpm.Unseal(parent, blob, []byte("wrong")); err == nil {
			t.Fatal("a wrong value unseals")
		}
	}
	if _, _, err := tpm.CreateChild(parent, DevIDTemplate(false), Sensitive{Auth: auth}); err == nil {
		t.Error("a secret was sent in clear")
	}
	if _, err := tpm.Seal(parent, SealTemplate(), Sensitive{Auth: auth, Data: data}); err == nil {
		t.Error("a secret was sent in clear")
	}
	if _, err := tpm.Unseal(parent, Blob{}, auth); err == nil {
		t.Error("a secret was asked for in clear")
	}
	tpm.transport.Send(append(auth, data...)) // no command, but it shows that the test sees the bus
	if !bytes.Contains(bus.Bytes(), auth) || !bytes.Contains(bus.Bytes(), data) {
		t.Error("this test does not see what it looks for")
	}
	if err := tpm.SaltTo(HandleSRK, parent.Public); err != nil {
		t.Fatal(err)
	}
	if err := tpm.Prove(); err != nil {
		t.Fatal(err)
	}
	work()
	if bytes.Contains(bus.Bytes(), auth) || bytes.Contains(bus.Bytes(), data) {
		t.Error("a secret crossed the bus in clear")
	}
	state, err := tpm.State()
	if err != nil || state.LockoutCounter != 0 {
		t.Errorf("the wrong value counted: %d, %v", state.LockoutCounter, err)
	}
}

// A key that the TPM does not hold can't be proven, whatever the bus answers.
func TestProveAnotherKey(t *testing.T) {
	t.Parallel()
	one, other := New(tpmkit.Start(t).Open(t), Secrets{}), New(tpmkit.Start(t).Open(t), Secrets{})
	defer one.Close()
	defer other.Close()
	storage(t, one)
	if err := one.SaltTo(HandleSRK, storage(t, other).Public); err != nil {
		t.Fatal(err)
	}
	if err := one.Prove(); err == nil {
		t.Error("a key of another TPM was proven")
	}
}

// A public area that was changed on its way is found out by its name.
func TestReadPublicChanged(t *testing.T) {
	t.Parallel()
	change := false
	tpm := New(fault.Tap{TPM: tpmkit.Start(t).Open(t), Answer: func(code tpm2.TPMCC, _, answer []byte) []byte {
		if change && code == tpm2.TPMCCReadPublic {
			answer[60] ^= 1
		}
		return answer
	}}, Secrets{})
	defer tpm.Close()
	storage(t, tpm)
	change = true
	if _, err := tpm.ReadPublic(HandleSRK); err == nil {
		t.Error("a changed public area was believed")
	}
}

func TestNotFound(t *testing.T) {
	t.Parallel()
	tpm := New(tpmkit.Start(t).Open(t), Secrets{})
	defer tpm.Close()
	if _, err := tpm.ReadPublic(HandleIDevID); !errors.Is(err, ErrNotFound) {
		t.Errorf("a key that is not there: %v", err)
	}
	if _, err := tpm.Index(IndexIDevID); !errors.Is(err, ErrNotFound) {
		t.Errorf("an index that is not there: %v", err)
	}
}

// A TPM that is busy is asked again; one that stays so ends with its own word.
func TestBusy(t *testing.T) {
	t.Parallel()
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting} {
		left := 2
		tpm := New(fault.Tap{TPM: tpmkit.Start(t).Open(t), Answer: func(_ tpm2.TPMCC, _, answer []byte) []byte {
			if left > 0 {
				left--
				return fault.Failure(rc)
			}
			return answer
		}}, Secrets{})
		if _, err := tpm.State(); err != nil {
			t.Errorf("%v: %v", rc, err)
		}
		tpm.Close()
	}
}

// A TPM that is busy for ever, and a bus that says so for it: a command is given
// up after some seconds, and not tried without a pause.
func TestBusyForEver(t *testing.T) {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting} {
		synctest.Test(t, func(t *testing.T) {
			sent := 0
			tpm := New(answers(func([]byte) []byte { sent++; return fault.Failure(rc) }), Secrets{})
			begin := time.Now()
			_, err := tpm.State()
			if !errors.Is(err, rc) || step.ClassOf(err) != step.Temporary {
				t.Errorf("%v: %v", rc, err)
			}
			if took := time.Since(begin); took < busyLimit || took > busyLimit+2*time.Second || sent > 50 {
				t.Errorf("%v: %d commands in %s", rc, sent, took)
			}
		})
	}
}

// answers is a TPM that answers as a function does.
type answers func(command []byte) []byte

func (a answers) Send(command []byte) ([]byte, error) { return a(command), nil }

// An answer has the size that it says.
func TestAnswerSize(t *testing.T) {
	t.Parallel()
	software := tpmkit.Start(t).Open(t)
	for _, change := range []func([]byte) []byte{
		func(a []byte) []byte { return a[:len(a)-1] },
		func(a []byte) []byte { return append(a, 0) },
		func(a []byte) []byte { return nil },
	} {
		tpm := New(fault.Tap{TPM: software, Answer: func(_ tpm2.TPMCC, _, answer []byte) []byte { return change(answer) }}, Secrets{})
		if _, err := tpm.State(); err == nil || step.ClassOf(err) != step.Temporary {
			t.Errorf("an answer of another size than it says was taken: %v", err)
		}
	}
}

// What is read back is what was made, and what the TPM itself confirms.
func TestReadBack(t *testing.T) {
	t.Parallel()
	s := tpmkit.Start(t)
	var lie []byte
	tpm := New(fault.Tap{TPM: s.Open(t), Answer: func(code tpm2.TPMCC, _, answer []byte) []byte {
		if lie != nil && code == tpm2.TPMCCReadPublic {
			return lie
		}
		return answer
	}}, Secrets{})
	defer tpm.Close()
	parent := storage(t, tpm)
	made := key(t, tpm, parent, false)
	other, err := s.Open(t).Send(binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 14, 0, 0, 1, 0x73}, uint32(HandleSRK)))
	if err != nil {
		t.Fatal(err)
	}
	lie = other // a public area with its own name, and of this TPM
	if k, err := tpm.ReadPublic(HandleLDevID); err == nil {
		t.Errorf("another key than was made was believed: %x", k.Name)
	}
	fresh := New(tpm.transport, Secrets{}) // in a later run nobody knows what was made
	swapped, err := fresh.ReadPublic(HandleLDevID)
	if err != nil {
		t.Fatal(err)
	}
	lie = nil
	if err := fresh.Confirm(made); step.ClassOf(err) != step.Software {
		t.Errorf("a key was confirmed by nobody: %v", err)
	}
	if err := fresh.SaltTo(HandleSRK, parent.Public); err != nil {
		t.Fatal(err)
	}
	if err := fresh.Confirm(made); err != nil {
		t.Error(err)
	}
	if err := fresh.Confirm(swapped); err == nil {
		t.Error("another key was confirmed")
	}
	lie = other
	if err := fresh.Confirm(made); err == nil {
		t.Error("a key was confirmed by an answer without a session")
	}
}

// An answer that a decision rests on is checked by the HMAC of its session: a
// bit changed there, the last one or one of what it is over, and it is an error.
func TestAnswersAreChecked(t *testing.T) {
	t.Parallel()
	s := tpmkit.Start(t)
	var change tpm2.TPMCC
	var at func(answer []byte) int
	tpm := New(fault.Tap{TPM: s.Open(t), Answer: func(code tpm2.TPMCC, _, answer []byte) []byte {
		if code == change {
			answer[at(answer)] ^= 1
		}
		return answer
	}}, Secrets{})
	defer tpm.Close()
	parent := storage(t, tpm)
	if err := tpm.SaltTo(HandleSRK, parent.Public); err != nil {
		t.Fatal(err)
	}
	blob, err := tpm.Seal(parent, SealTemplate(), Sensitive{Auth: []byte("value"), Data: []byte("data")})
	if err != nil {
		t.Fatal(err)
	}
	for code, work := range map[tpm2.TPMCC]func() error{
		tpm2.TPMCCHash:       tpm.Prove,
		tpm2.TPMCCReadPublic: func() error { return tpm.Confirm(parent.Key) },
		tpm2.TPMCCUnseal:     func() error { _, err := tpm.Unseal(parent, blob, []byte("value")); return err },
		tpm2.TPMCCCreate: func() error {
			_, err := tpm.Seal(parent, SealTemplate(), Sensitive{Auth: []byte("value"), Data: []byte("data")})
			return err
		},
	} {
		for where, position := range map[string]func([]byte) int{
			"the HMAC":       func(a []byte) int { return len(a) - 1 },
			"the attributes": func(a []byte) int { return len(a) - 32 - 2 - 1 },
			"the parameters": func(a []byte) int { return 10 + 4 + 2 },
		} {
			change, at = code, position
			if err := work(); err == nil {
				t.Errorf("command %#x: believed with a bit changed in %s", uint32(code), where)
			}
			change = 0
			if err := work(); err != nil {
				t.Errorf("command %#x: %v", uint32(code), err)
			}
		}
	}
	change, at = tpm2.TPMCCHierarchyChanegAuth, func(a []byte) int { return len(a) - 1 }
	if err := tpm.ClosePlatform(); err == nil {
		t.Error("it was believed that the platform is closed")
	}
}

// The name of a new or loaded key that was changed on its way: nobody goes on
// with that key, and it takes no slot.
func TestCreatedName(t *testing.T) {
	t.Parallel()
	software := tpmkit.Start(t).Open(t)
	var change tpm2.TPMCC
	tpm := New(fault.Tap{TPM: software, Answer: func(code tpm2.TPMCC, _, answer []byte) []byte {
		if code == change {
			answer[len(answer)-6] ^= 1 // before the empty password's session
		}
		return answer
	}}, Secrets{})
	defer tpm.Close()
	parent := storage(t, tpm)
	l, blob, err := tpm.CreateChild(parent, DevIDTemplate(false), Sensitive{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	change = tpm2.TPMCCCreatePrimary
	if _, err := tpm.CreatePrimary(tpm2.TPMRHOwner, SRKTemplate); step.ClassOf(err) != step.Refused {
		t.Errorf("a primary key of another name: %v", err)
	}
	change = tpm2.TPMCCLoad
	if _, err := tpm.Load(parent, blob); step.ClassOf(err) != step.Refused {
		t.Errorf("a loaded key of another name: %v", err)
	}
	change = tpm2.TPMCCCreateLoaded
	if _, _, err := tpm.CreateChild(parent, DevIDTemplate(false), Sensitive{}); step.ClassOf(err) != step.Refused {
		t.Errorf("a new key of another name: %v", err)
	}
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x80000000, PropertyCount: 9}.Execute(software)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := rsp.CapabilityData.Data.Handles(); err != nil || len(left.Handle) != 0 {
		t.Errorf("left in the TPM: %x, %v", left.Handle, err)
	}
}

// A public area of an index that was changed on its way.
func TestIndexChanged(t *testing.T) {
	t.Parallel()
	change := -1
	tpm := New(fault.Tap{TPM: tpmkit.Start(t).Open(t), Answer: func(code tpm2.TPMCC, _, answer []byte) []byte {
		if change >= 0 && code == tpm2.TPMCCNVReadPublic {
			answer[change] ^= 1
		}
		return answer
	}}, Secrets{})
	defer tpm.Close()
	const index = tpm2.TPMHandle(0x01800001)
	if err := tpm.Define(tpm2.TPMRHOwner, index, tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, NoDA: true}, 8); err != nil {
		t.Fatal(err)
	}
	for change = range 58 {
		// Header, size, index, name algorithm (another one may not be known here),
		// attributes, policy, size of the data, name.
		if change < 12 || change == 16 || change == 17 {
			continue
		}
		if i, err := tpm.Index(index); err == nil {
			t.Errorf("byte %d was changed and believed: %+v", change, i)
		}
	}
	change = -1
	if _, err := tpm.Index(index); err != nil {
		t.Error(err)
	}
}

// The proof of an authorisation value is salted, whether there is a key to trust
// yet or not, and leaves nothing in the TPM.
func TestProofIsSalted(t *testing.T) {
	t.Parallel()
	s := tpmkit.Start(t)
	owner := []byte("the owner's")
	open := s.Open(t)
	_, err := tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NewAuth:    tpm2.TPM2BAuth{Buffer: owner},
	}.Execute(open)
	if err != nil {
		t.Fatal(err)
	}
	var keys []tpm2.TPMHandle
	tpm := New(fault.Tap{TPM: open, Answer: func(code tpm2.TPMCC, command, answer []byte) []byte {
		if code == tpm2.TPMCCStartAuthSession {
			keys = append(keys, tpm2.TPMHandle(binary.BigEndian.Uint32(command[10:])))
		}
		return answer
	}}, Secrets{Owner: owner})
	parent := storage(t, tpm)
	if len(keys) != 2 || keys[0] == tpm2.TPMRHNull || keys[1] == tpm2.TPMRHNull || keys[0] == keys[1] {
		t.Errorf("the owner's value was proven to %#x: want a key of the null hierarchy, then the SRK", keys)
	}
	if err := tpm.SaltTo(HandleSRK, parent.Public); err != nil {
		t.Fatal(err)
	}
	if err := tpm.Evict(parent.Key); err != nil {
		t.Error(err)
	}
	if last := keys[len(keys)-1]; last != HandleSRK {
		t.Errorf("the owner's value was proven to %#x, want %#x", last, HandleSRK)
	}
	if err := tpm.Close(); err != nil {
		t.Error(err)
	}
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x80000000, PropertyCount: 9}.Execute(open)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := rsp.CapabilityData.Data.Handles(); err != nil || len(left.Handle) != 0 {
		t.Errorf("left in the TPM: %x, %v", left.Handle, err)
	}
}

// An NV index in pieces, with the reader that its attributes allow.
func TestNV(t *testing.T) {
	t.Parallel()
	tpm := New(fault.Small{TPM: tpmkit.Start(t).Open(t), Buffer: 700}, Secrets{})
	defer tpm.Close()
	const index = tpm2.TPMHandle(0x01800001)
	data := bytes.Repeat([]byte("0123456789abcdef"), 100)
	for _, attributes := range []tpm2.TPMANV{
		{OwnerWrite: true, OwnerRead: true, NoDA: true},
		{OwnerWrite: true, AuthRead: true, NoDA: true},
		{OwnerWrite: true, PPRead: true, NoDA: true},
	} {
		if err := tpm.Define(tpm2.TPMRHOwner, index, attributes, len(data)); err != nil {
			t.Fatal(err)
		}
		fresh, err := NewIndex(index, attributes, len(data))
		if err != nil {
			t.Fatal(err)
		}
		if err := tpm.Write(tpm2.TPMRHOwner, fresh, data); err != nil {
			t.Fatal(err)
		}
		i, err := tpm.Index(index)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tpm.Read(i); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%+v: read %d bytes, %v", attributes, len(got), err)
		}
		if err := tpm.Undefine(tpm2.TPMRHOwner, i); err != nil {
			t.Fatal(err)
		}
	}
	// No answer of any kind makes a panic, and none but success a success.
	if err := tpm.Define(tpm2.TPMRHOwner, index, tpm2.TPMANV{OwnerWrite: true, OwnerRead: true}, 4096); err == nil || step.ClassOf(err) == 0 {
		t.Errorf("an index larger than the TPM allows: %v", err)
	}
}

// The two commands that go-tpm lacks, with and without an authorisation value.
func TestRaw(t *testing.T) {
	t.Parallel()
	s := tpmkit.Start(t)
	tpm := New(s.Open(t), Secrets{})
	defer tpm.Close()
	if err := tpm.ResetLockout(); err != nil {
		t.Error(err)
	}
	lockout := []byte("lockout")
	_, err := tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)},
		NewAuth:    tpm2.TPM2BAuth{Buffer: lockout},
	}.Execute(tpm.transport)
	if err != nil {
		t.Fatal(err)
	}
	known := New(s.Open(t), Secrets{Lockout: lockout})
	defer known.Close()
	if err := known.ResetLockout(); err != nil {
		t.Error(err)
	}
	if err := known.DisableClear(tpm2.TPMRHLockout); err != nil {
		t.Error(err)
	}
	state, err := known.State()
	if err != nil || !state.ClearDisabled || !state.LockoutAuthSet {
		t.Errorf("%+v, %v", state, err)
	}
	if err := known.ClosePlatform(); step.ClassOf(err) != step.Software {
		t.Errorf("the platform's new value was sent in clear: %v", err)
	}
	if err := known.SaltTo(HandleSRK, storage(t, tpm).Public); err != nil {
		t.Fatal(err)
	}
	if err := known.ClosePlatform(); err != nil {
		t.Fatal(err)
	}
	if err := known.DisableClear(tpm2.TPMRHPlatform); step.ClassOf(err) != step.Refused {
		t.Errorf("the platform is not closed: %v", err)
	}
}

// What a TPM answers decides how a run goes on.
func TestClasses(t *testing.T) {
	t.Parallel()
	software := tpmkit.Start(t).Open(t)
	for rc, class := range map[tpm2.TPMRC]step.Class{
		tpm2.TPMRCCurve + 0x240:   step.Refused, // no P-256; parameter 2
		tpm2.TPMRCHierarchy:       step.Refused,
		tpm2.TPMRCBadAuth + 0x800: step.Refused, // session 1
		tpm2.TPMRCNVSpace:         step.Refused,
		tpm2.TPMRCLockout:         step.Temporary,
		tpm2.TPMRCObjectMemory:    step.Temporary,
		tpm2.TPMRCSessionMemory:   step.Temporary,
		tpm2.TPMRCFailure:         step.Unavailable,
		tpm2.TPMRCInitialize:      step.Refused,
	} {
		spoiled := false
		tpm := New(fault.Tap{TPM: software, Answer: func(code tpm2.TPMCC, _, answer []byte) []byte {
			if code == tpm2.TPMCCCreatePrimary && !spoiled {
				spoiled = true
				return fault.Failure(rc)
			}
			return answer
		}}, Secrets{})
		_, err := tpm.CreatePrimary(tpm2.TPMRHOwner, SRKTemplate)
		if step.ClassOf(err) != class || err == nil {
			t.Errorf("%v: class %d, want %d (%v)", rc, step.ClassOf(err), class, err)
		}
		if class == step.Refused && step.HintOf(err) == "" && rc != tpm2.TPMRCAttributes {
			t.Errorf("%v: no hint", rc)
		}
	}
}

// deniedBus is a socket that the user may not open.
type deniedBus struct{}

func (deniedBus) Send([]byte) ([]byte, error) {
	return nil, &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", syscall.EACCES)}
}

// A socket tells with the first command only whether somebody listens, and
// whether one may speak to him.
func TestSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	// Bound, and never listened on: one that was closed may live on for a moment, in
	// a process that another test is about to start.
	socket, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(socket)
	if err := syscall.Bind(socket, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	tpm, err := Open("unix:"+path, Secrets{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = tpm.State(); step.ClassOf(err) != step.Temporary || step.HintOf(err) == "" {
		t.Errorf("nobody listens: class %d, hint %q: %v", step.ClassOf(err), step.HintOf(err), err)
	}
	denied := New(deniedBus{}, Secrets{})
	if _, err = denied.State(); step.ClassOf(err) != step.Permission || step.HintOf(err) == "" {
		t.Errorf("not allowed: class %d, hint %q: %v", step.ClassOf(err), step.HintOf(err), err)
	}
}

// A TPM says who made it, and how it stands: with a command for each, because
// the first is not asked for at each boot.
func TestProperties(t *testing.T) {
	t.Parallel()
	software := tpmkit.Start(t)
	counted := &fault.Cutter{TPM: software.Open(t)}
	tpm := New(counted, Secrets{})
	who, err := tpm.Make()
	if err != nil || counted.Sent != 1 || who.Vendor != "IBM" || !strings.Contains(who.Model, "TPM") || !regexp.MustCompile(`^[1-9][0-9]*(\.[0-9]+){3}$`).MatchString(who.Firmware) {
		t.Errorf("%+v by %d commands, %v", who, counted.Sent, err)
	}
	storage(t, tpm)
	if keys, err := tpm.Persistent(); err != nil || !slices.Equal(keys, []tpm2.TPMHandle{HandleSRK}) {
		t.Errorf("the persistent keys are %x, %v", keys, err)
	}
	before, err := tpm.Resets()
	if err != nil {
		t.Error(err)
	}
	software.Reboot(t)
	if after, err := tpm.Resets(); err != nil || after == before {
		t.Errorf("%d resets, then %d, %v", before, after, err)
	}
	counted.Sent = 1
	state, err := tpm.State()
	if err != nil || counted.Sent != 2 || state.LockoutMax == 0 || state.RoomForKeys == 0 || !state.PlatformEnabled || state.ClearDisabled {
		t.Errorf("%+v by %d commands, %v", state, counted.Sent, err)
	}
}

// A short, long or empty answer is an error, and no panic.
func TestTruncatedAnswers(t *testing.T) {
	t.Parallel()
	software := tpmkit.Start(t).Open(t)
	whole := New(software, Secrets{})
	storage(t, whole)
	for n := range 80 {
		for _, fill := range []int{0, 5} {
			tpm := New(fault.Tap{TPM: software, Answer: func(_ tpm2.TPMCC, _, answer []byte) []byte {
				return append(answer[:min(n, len(answer)-1)], make([]byte, fill)...)
			}}, Secrets{})
			if _, err := tpm.ReadPublic(HandleSRK); err == nil {
				t.Errorf("%d bytes of a public area and %d others were taken", n, fill)
			}
			if err := tpm.ResetLockout(); err == nil && n < 10 {
				t.Errorf("%d bytes of an answer were taken", n)
			}
			if _, err := tpm.Make(); err == nil {
				t.Errorf("%d bytes of who made it were taken", n)
			}
			if _, err := tpm.State(); err == nil {
				t.Errorf("%d bytes of the properties were taken", n)
			}
			_, _ = tpm.Indices()
			_, _ = tpm.Index(IndexIDevID)
		}
	}
}
