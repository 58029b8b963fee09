package token

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/miekg/pkcs11"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/limit"
)

func FuzzRow(f *testing.F) {
	private, public, err := testKey().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(private)
	f.Add(public)
	f.Add("{'0': 3, 3: '6c'}")
	f.Fuzz(func(t *testing.T, s string) {
		defer limit.Time(t, 5*time.Second)()
		r, err := parseRow(s)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		area, key, err := parsePublic(r.public)
		if err == nil && key == nil {
			t.Fatal("no key and no error")
		}
		// A pair that can be used is written as rows that are read as the same pair.
		if _, unfit := usable(cmp.Or(area, &tpm2.TPMTPublic{})); err != nil || unfit != nil {
			return
		}
		pair := Key{Label: string(r.label), ID: r.id, TPM2BPublic: r.public, TPM2BPrivate: r.private, WrappedAuth: r.wrapped}
		private, _, err := pair.encode()
		if err != nil {
			return
		}
		again, err := parseRow(private)
		if err != nil || !bytes.Equal(again.label, r.label) || !bytes.Equal(again.id, r.id) || !bytes.Equal(again.public, r.public) ||
			!bytes.Equal(again.private, r.private) || again.wrapped != r.wrapped || again.class != pkcs11.CKO_PRIVATE_KEY {
			t.Errorf("%+v became %+v, %v", r, again, err)
		}
	})
}

func FuzzPrimary(f *testing.F) {
	f.Add(testPrimary)
	f.Fuzz(func(t *testing.T, s string) {
		defer limit.Time(t, 5*time.Second)()
		p, err := parsePrimary(s)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		if err == nil && p.Handle != 0 && len(p.Public) < 2 {
			t.Fatalf("%+v", p)
		}
	})
}

func FuzzESYSTR(f *testing.F) {
	raw, _ := hex.DecodeString(testESYSTR)
	f.Add(raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		defer limit.Time(t, 5*time.Second)()
		p, err := parseESYSTR(b)
		if err == nil && 4+2+len(p.Name)+4+len(p.Public) != len(b) {
			t.Fatalf("%d bytes became %+v", len(b), p)
		}
	})
}

// FuzzUnwrapAuth: what is unwrapped without an error was wrapped with this key, or is the empty value.
func FuzzUnwrapAuth(f *testing.F) {
	f.Add("fc9f3c1ab2f5cdd7ecf2aba2:ed9adccb6b509fd5fea1855ed224865e:ec0f6eb0a4ef9c58be6e82cd10351f98d595450fb874934ebfa6a5df6c869222")
	f.Add("f28ddf48535a7e4e4c12ddde:5da6395b47e4e94800289e9fac4732d3:")
	f.Add("::")
	f.Fuzz(func(t *testing.T, wrapped string) {
		defer limit.Time(t, 5*time.Second)()
		auth, err := UnwrapAuth(testWrappingKey, wrapped)
		if err != nil {
			if auth != nil || !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrWrongKey) {
				t.Errorf("%q, %v", auth, err)
			}
			return
		}
		if len(auth) == 0 {
			return
		}
		iv, _, _, err := splitWrapped(wrapped)
		if err != nil {
			t.Fatal(err)
		}
		again, err := WrapAuth(testWrappingKey, auth, bytes.NewReader(iv))
		if err != nil || !strings.EqualFold(again, wrapped) {
			t.Errorf("%q is wrapped as %q, %v", wrapped, again, err)
		}
	})
}
