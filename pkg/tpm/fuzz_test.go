package tpm

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/fault"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/limit"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
)

// A script is a TPM that answers what is written in it, whatever it is asked:
// answers one after the other, each behind its length in two bytes. A stubborn one
// begins anew at the end, so that a loop which a TPM can keep going does.
type script struct {
	all, left []byte
	stubborn  bool
	asked     int
}

var (
	errScript   = errors.New("the script is over")
	errTooOften = errors.New("asked too often")
)

// mostCommands is what one operation may send: an index of 65535 bytes in pieces
// of one byte, and what goes before it.
const mostCommands = 1<<16 + 16

func (s *script) Send([]byte) ([]byte, error) {
	if s.asked++; s.asked > mostCommands {
		return nil, errTooOften
	}
	if len(s.left) < 2 && s.stubborn {
		s.left = s.all
	}
	if len(s.left) < 2 {
		return nil, errScript
	}
	n := min(int(binary.BigEndian.Uint16(s.left)), len(s.left)-2)
	answer := s.left[2 : 2+n]
	s.left = s.left[2+n:]
	return bytes.Clone(answer), nil
}

// operations are what the programs do with a TPM, as a fuzzer can call them. Each judges
// what it has got.
var operations = []func(*testing.T, *TPM) error{
	func(t *testing.T, tpm *TPM) error {
		k, err := tpm.ReadPublic(HandleIDevID)
		if err == nil {
			checkKey(t, k)
		}
		return err
	},
	func(t *testing.T, tpm *TPM) error {
		i, err := tpm.Index(IndexIDevID)
		if err != nil {
			return err
		}
		data, err := tpm.Read(i)
		if err == nil && len(data) != int(i.DataSize) {
			t.Errorf("%d bytes of an index of %d", len(data), i.DataSize)
		}
		return err
	},
	func(t *testing.T, tpm *TPM) error {
		indices, err := tpm.Indices()
		if err == nil && len(indices) > mostIndices {
			t.Errorf("%d indices", len(indices))
		}
		return err
	},
	func(_ *testing.T, tpm *TPM) error { _, err := tpm.State(); return err },
	func(_ *testing.T, tpm *TPM) error { return tpm.ResetLockout() },
	func(t *testing.T, tpm *TPM) error {
		l, err := tpm.CreatePrimary(tpm2.TPMRHOwner, SRKTemplate)
		if err != nil {
			return err
		}
		checkKey(t, &Key{Handle: l.Handle, Public: l.Public, Name: l.Name})
		return l.Flush()
	},
	func(t *testing.T, tpm *TPM) error {
		k, err := tpm.ReadPublic(HandleSRK)
		if err != nil {
			return err
		}
		l, blob, err := tpm.CreateChild(Parent{Key: k}, DevIDTemplate(false), Sensitive{})
		if err != nil {
			return err
		}
		checkKey(t, &Key{Handle: l.Handle, Public: l.Public, Name: l.Name})
		if err := l.Flush(); err != nil {
			return err
		}
		again, err := tpm.Load(Parent{Key: k}, blob)
		if err != nil {
			return err
		}
		checkKey(t, &Key{Handle: again.Handle, Public: again.Public, Name: again.Name})
		return again.Flush()
	},
	func(_ *testing.T, tpm *TPM) error {
		k, err := tpm.ReadPublic(HandleLDevID)
		if err != nil {
			return err
		}
		s, err := tpm.Signer(k)
		if err != nil {
			return err
		}
		_, err = s.Sign(nil, make([]byte, 32), crypto.SHA256) // verifies what it gives out
		return err
	},
	func(t *testing.T, tpm *TPM) error {
		k, err := tpm.ReadPublic(HandleEKRSA)
		if err != nil {
			return err
		}
		if err := tpm.SaltTo(HandleEKRSA, k.Public); err != nil {
			return err
		}
		return tpm.Prove()
	},
	func(_ *testing.T, tpm *TPM) error {
		i, err := NewIndex(IndexIDevID, tpm2.TPMANV{PPRead: true}, 4)
		if err != nil {
			return err
		}
		_, err = tpm.PlatformOpen(i)
		return err
	},
}

// The operations that read lists.
const (
	opIndices = 2
	opState   = 3
)

// moreData is an answer of TPM2_GetCapability, behind its length and in front of
// others, that says that the list goes on.
func moreData(answer []byte) []byte {
	answer = bytes.Clone(answer)
	answer[2+10] = 1 // the flag is the first parameter
	return answer
}

// checkKey is what a public area that was believed must be: the one of its name.
func checkKey(t *testing.T, k *Key) {
	t.Helper()
	name, err := tpm2.ObjectName(&k.Public)
	if err != nil || !bytes.Equal(name.Buffer, k.Name) {
		t.Errorf("a key of the name %x was believed to be %x", name, k.Name)
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](k.PublicArea())
	if err != nil || !bytes.Equal(tpm2.Marshal(area), k.PublicArea()) {
		t.Errorf("the public area cannot be read again: %v", err)
	}
	if public, err := k.PublicKey(); err == nil && public == nil {
		t.Error("neither a key nor an error")
	}
	_ = k.Matches(SRKTemplate)
	_ = k.ChildOf(k, tpm2.TPMRHOwner)
}

// FuzzAnswers: whatever a chip or a bus answers, an operation ends, in an error or
// in something that is as it says. A replay proves nothing: sessions have new
// nonces each time.
func FuzzAnswers(f *testing.F) {
	answers := record(f)
	for op := range operations {
		f.Add(byte(op), false, answers[op])
		f.Add(byte(op), true, answers[op])
	}
	// Lists of indices and properties that go on, and never get on.
	for _, op := range []int{opIndices, opState} {
		f.Add(byte(op), true, moreData(answers[op]))
	}
	f.Fuzz(func(t *testing.T, op byte, stubborn bool, answers []byte) {
		defer limit.Time(t, 5*time.Second)()
		s := &script{all: answers, left: answers, stubborn: stubborn}
		// Without the wrapper that waits for a busy TPM.
		tpm := &TPM{transport: whole{s}, close: func() error { return nil }}
		err := operations[int(op)%len(operations)](t, tpm)
		if s.asked > mostCommands {
			t.Errorf("a TPM kept it going for ever; it ended with %v", err)
		}
		if err != nil && len(err.Error()) > 4096 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
		_ = tpm.Close()
	})
}

// record is what a software TPM answers to each of the operations.
func record(f *testing.F) [][]byte {
	f.Helper()
	software := tpmkit.Start(f)
	tpm := New(software.Open(f), Secrets{})
	defer tpm.Close()
	ek, err := tpm.CreatePrimary(tpm2.TPMRHEndorsement, EKTemplate(true, false))
	if err == nil {
		err = errors.Join(tpm.Persist(ek, HandleEKRSA), ek.Flush())
	}
	if err != nil {
		f.Fatal(err)
	}
	parent := storage(f, tpm)
	for _, handle := range []tpm2.TPMHandle{HandleIDevID, HandleLDevID} {
		l, _, err := tpm.CreateChild(parent, DevIDTemplate(false), Sensitive{})
		if err == nil {
			err = errors.Join(tpm.Persist(l, handle), l.Flush())
		}
		if err != nil {
			f.Fatal(err)
		}
	}
	attributes := tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, NoDA: true}
	fresh, err := NewIndex(IndexIDevID, attributes, 1500)
	if err == nil {
		err = errors.Join(tpm.Define(tpm2.TPMRHOwner, IndexIDevID, attributes, 1500), tpm.Write(tpm2.TPMRHOwner, fresh, make([]byte, 1500)))
	}
	if err != nil {
		f.Fatal(err)
	}

	seeds := make([][]byte, len(operations))
	for i, operate := range operations {
		tap := fault.Tap{TPM: software.Open(f), Answer: func(_ tpm2.TPMCC, _, answer []byte) []byte {
			seeds[i] = binary.BigEndian.AppendUint16(seeds[i], uint16(len(answer)))
			seeds[i] = append(seeds[i], answer...)
			return answer
		}}
		tapped := New(tap, Secrets{})
		if err := operate(new(testing.T), tapped); err != nil {
			f.Fatalf("operation %d: %v", i, err)
		}
		if err := tapped.Close(); err != nil {
			f.Fatal(err)
		}
	}
	return seeds
}

// FuzzBlob: what is kept on the disk of a key goes to the TPM, or is refused.
func FuzzBlob(f *testing.F) {
	public := tpm2.Marshal(tpm2.New2B(DevIDTemplate(false)))
	private := tpm2.Marshal(tpm2.TPM2BPrivate{Buffer: make([]byte, 64)})
	f.Add(public, private)
	f.Add(public[:9], private)
	f.Add([]byte{}, []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, public, private []byte) {
		defer limit.Time(t, 5*time.Second)()
		s := &script{}
		tpm := &TPM{transport: s, close: func() error { return nil }}
		parent := Parent{Key: &Key{Handle: HandleSRK, Public: SRKTemplate}}
		if _, err := tpm.Load(parent, Blob{Public: public, Private: private}); err == nil {
			t.Error("it was loaded by nobody")
		}
		if s.asked > 1 {
			t.Errorf("%d commands", s.asked)
		}
	})
}
