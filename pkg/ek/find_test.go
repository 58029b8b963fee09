package ek_test

import (
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/ek"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// nv is the NV of a TPM: its values are []byte, or the error of reading the index.
type nv map[uint32]any

func (n nv) find() (*ek.Found, error) {
	return ek.Find(slices.Collect(maps.Keys(n)), func(index uint32) ([]byte, error) {
		if err, ok := n[index].(error); ok {
			return nil, err
		}
		return n[index].([]byte), nil
	})
}

func TestFind(t *testing.T) {
	root := newCA(t, "Root", nil)
	ica := newCA(t, "On Die CA", root)
	ecCert := ica.ek(t)
	rsaCert := ica.ekFor(t, rsa2048().Public())
	p384Cert := ica.ekFor(t, pki.NewKeyOn(t, elliptic.P384()).Public())
	unreadable := fmt.Errorf("%w: not written", ek.ErrUnreadable)
	busy := errors.New("TPM is busy")
	junk := []byte("not a certificate")

	tests := []struct {
		name   string
		nv     nv
		usable uint32           // index of the certificate
		check  func(error) bool // of the error, if nothing is usable
		chain  int
		broken bool // the chain
	}{
		{name: "nothing", nv: nv{0x01C90000: junk}, check: is(ek.ErrNotFound)},
		{name: "both in the low range, of which one is read", nv: nv{0x01C0000A: busy, 0x01C00002: rsaCert}, usable: 0x01C00002},
		{name: "nonce and template are not read", nv: nv{0x01C0000A: ecCert, 0x01C00003: busy, 0x01C00004: busy, 0x01C0000B: busy, 0x01C0000C: busy},
			usable: 0x01C0000A},
		{name: "low range before high range", nv: nv{0x01C00012: rsaCert, 0x01C00014: ecCert, 0x01C0000A: ecCert},
			usable: 0x01C0000A},
		{name: "malformed one does not hide a good one", nv: nv{0x01C00002: junk, 0x01C0000A: ecCert}, usable: 0x01C0000A},
		{name: "unreadable one does not hide a good one", nv: nv{0x01C00002: unreadable, 0x01C0000A: ecCert}, usable: 0x01C0000A},
		{name: "unreadable", nv: nv{0x01C00002: unreadable}, check: is(ek.ErrUnreadable)},
		{name: "malformed", nv: nv{0x01C00002: junk}, check: as[*ek.MalformedError]},
		{name: "P-384 only", nv: nv{0x01C00016: p384Cert}, check: as[*ek.UnsupportedKeyError]},
		{name: "P-384 and a malformed one", nv: nv{0x01C00016: p384Cert, 0x01C00002: junk}, check: as[*ek.MalformedError]},
		{name: "P-384 beside RSA-2048", nv: nv{0x01C00016: p384Cert, 0x01C00002: rsaCert}, usable: 0x01C00002},
		{name: "another key than the slot's", nv: nv{0x01C00002: ecCert}, check: as[*ek.SlotKeyError]},
		{name: "chain", nv: nv{0x01C0000A: ecCert, 0x01C00101: root.Cert.Raw, 0x01C00100: ica.Cert.Raw}, usable: 0x01C0000A, chain: 2},
		{name: "chain cut over indices", nv: nv{0x01C0000A: ecCert, 0x01C001FF: ica.Cert.Raw[200:], 0x01C00100: ica.Cert.Raw[:200]}, usable: 0x01C0000A, chain: 1},
		{name: "beside the chain", nv: nv{0x01C0000A: ecCert, 0x01C000FF: busy, 0x01C00200: busy}, usable: 0x01C0000A},
		{name: "broken chain", nv: nv{0x01C0000A: ecCert, 0x01C00100: ica.Cert.Raw, 0x01C00101: junk}, usable: 0x01C0000A, chain: 1, broken: true},
		{name: "unreadable chain", nv: nv{0x01C0000A: ecCert, 0x01C00100: ica.Cert.Raw, 0x01C00101: unreadable}, usable: 0x01C0000A, chain: 1, broken: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			found, err := test.nv.find()
			if err != nil {
				t.Fatal(err)
			}
			if len(found.Chain) != test.chain || (found.ChainErr != nil) != test.broken {
				t.Errorf("got a chain of %d certificates and error %v", len(found.Chain), found.ChainErr)
			}
			entry, err := found.Usable()
			if test.check != nil {
				if !test.check(err) {
					t.Errorf("got another error: %v", err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if entry == nil && test.usable != 0 || entry != nil && entry.Slot.Certificate != test.usable {
				t.Errorf("got %+v, want 0x%08X", entry, test.usable)
			}
		})
	}

	t.Run("chain verifies", func(t *testing.T) {
		found, err := nv{0x01C0000A: ecCert, 0x01C00100: ica.Cert.Raw}.find()
		if err != nil {
			t.Fatal(err)
		}
		o := ek.Options{Anchors: []*x509.Certificate{root.Cert}, Intermediates: found.Chain, At: now}
		if _, err := ek.Verify(found.Certificates[0].Certificate, o); err != nil {
			t.Error(err)
		}
	})
	for _, index := range []uint32{0x01C00002, 0x01C00100} {
		t.Run(fmt.Sprintf("transient error at 0x%08X", index), func(t *testing.T) {
			if found, err := (nv{index: busy, 0x01C0000A: ecCert}).find(); !errors.Is(err, busy) || found != nil {
				t.Errorf("got %v, %v", found, err)
			}
		})
	}
	t.Run("endless chain", func(t *testing.T) {
		n, reads := nv{}, 0
		for i := ek.ChainFirst; i <= ek.ChainLast; i++ {
			n[i] = make([]byte, 2048)
		}
		found, err := ek.Find(slices.Collect(maps.Keys(n)), func(i uint32) ([]byte, error) { reads++; return n[i].([]byte), nil })
		if err != nil || found.ChainErr == nil || reads != 33 {
			t.Errorf("got %v, %v after %d reads", err, found.ChainErr, reads)
		}
	})
}

func is(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }

func as[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

func TestSlots(t *testing.T) {
	seen := make(map[uint32]string)
	for _, s := range ek.Slots() {
		for _, index := range []uint32{s.Certificate, s.Template, s.Nonce} {
			if index == 0 {
				continue
			}
			if other, ok := seen[index]; ok {
				t.Errorf("%s and %s share 0x%08X", other, s.Name, index)
			}
			seen[index] = s.Name
		}
		if s.HighRange() != (s.Nonce == 0) {
			t.Errorf("%s: the low range has nonces, the high range has none", s.Name)
		}
	}
}
