package ek_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tpm2cloud/tpm2cloud/pkg/ek"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

func TestParse(t *testing.T) {
	root := newCA(t, "Root", nil)
	der := root.ek(t)
	size := func(n int) []byte { return []byte{byte(n >> 8), byte(n)} }
	header5 := slices.Concat([]byte{0x10, 0x01, 0x00}, size(len(der)))
	header7 := slices.Concat([]byte{0x10, 0x01, 0x00}, size(len(der)+2), []byte{0x10, 0x02})
	tests := []struct {
		name    string
		blob    []byte
		padding int
		err     string // part of the message; "" if it must be accepted
	}{
		{name: "plain", blob: der},
		{name: "padded with 0x00", blob: append(slices.Clone(der), bytes.Repeat([]byte{0}, 100)...), padding: 100},
		{name: "padded with 0xFF", blob: append(slices.Clone(der), bytes.Repeat([]byte{0xFF}, 431)...), padding: 431},
		{name: "padded with 0x11", blob: append(slices.Clone(der), bytes.Repeat([]byte{0x11}, 192)...), padding: 192},
		{name: "padded with one byte", blob: append(slices.Clone(der), 0x30), padding: 1},
		{name: "mixed tail", blob: append(slices.Clone(der), 0xFF, 0xFF, 0x00), err: "are not padding"},
		{name: "header of five bytes", blob: append(header5, der...)},
		{name: "header of seven bytes", blob: append(header7, der...)},
		{name: "header and padding", blob: slices.Concat(header7, der, []byte{0xFF, 0xFF}), padding: 2},
		{name: "header of a partial certificate", blob: slices.Concat([]byte{0x10, 0x01, 0x01}, header7[3:], der), err: "type 1"},
		{name: "header with a size too large", blob: slices.Concat([]byte{0x10, 0x01, 0x00, 0x7F, 0xFF}, der), err: "says 32767 bytes"},
		{name: "header with a size too small", blob: slices.Concat([]byte{0x10, 0x01, 0x00, 0x00, 0x10}, der), err: "says 16 bytes"},
		{name: "header alone", blob: header7, err: "header says"},
		{name: "truncated", blob: der[:len(der)-1], err: "no DER sequence"},
		{name: "truncated in its length", blob: der[:2], err: "no DER sequence"},
		{name: "empty", blob: nil, err: "it is empty"},
		{name: "blank", blob: bytes.Repeat([]byte{0xFF}, 1600), err: "nothing but 0xff"},
		{name: "64 KiB of junk", blob: bytes.Repeat([]byte("junk"), 16<<10), err: "more than the 16384"},
		{name: "template instead of a certificate", blob: []byte{0x00, 0x01, 0x00, 0x0B, 0x00, 0x03}, err: "not with a sequence"},
		{name: "another structure", blob: []byte{0x30, 0x03, 0x02, 0x01, 0x05}, err: "no X.509 certificate"},
		{name: "indefinite length", blob: append([]byte{0x30, 0x80}, der[4:]...), err: "no DER sequence"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := ek.Parse(test.blob)
			if test.err != "" {
				var malformed *ek.MalformedError
				if !errors.As(err, &malformed) || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got error %v, want a MalformedError with %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := ek.Names{Manufacturer: "id:49465800", Model: "SLB9670", Version: "id:00070055"}
			if !bytes.Equal(c.X509.Raw, der) || c.Padding != test.padding || c.Kind != ek.P256 || c.Names != want {
				t.Errorf("got kind %s, padding %d, names %+v", c.Kind, c.Padding, c.Names)
			}
		})
	}
}

// TestParseOAEP changes the algorithm in the public key, which leaves crypto/x509 without a key.
func TestParseOAEP(t *testing.T) {
	der := newCA(t, "Root", nil).ekFor(t, rsa2048().Public())
	rsaEncryption := []byte{0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 1}
	if n := bytes.Count(der, rsaEncryption); n != 1 {
		t.Fatalf("the algorithm occurs %d times", n)
	}
	withAlgorithm := func(last byte) []byte {
		return bytes.Replace(der, rsaEncryption, append(slices.Clone(rsaEncryption[:8]), last), 1)
	}

	c := mustParse(t, withAlgorithm(7))
	if c.X509.PublicKey != nil {
		t.Log("crypto/x509 knows id-RSAES-OAEP now: publicKey can go")
	}
	if !ek.SameKey(c.Key, rsa2048().Public()) || c.Kind != ek.RSA2048 {
		t.Errorf("got another key, of kind %q", c.Kind)
	}

	var malformed *ek.MalformedError
	if _, err := ek.Parse(withAlgorithm(10)); !errors.As(err, &malformed) { // id-RSASSA-PSS: it only signs
		t.Errorf("got %v, want a MalformedError", err)
	}
}

func TestVendor(t *testing.T) {
	for manufacturer, want := range map[string]string{
		"id:49465800": "IFX",
		"id:53544D20": "STM",
		"id:494E5443": "INTC",
		"id:414d4400": "AMD",
		"id:4E544300": "NTC",
		"id:00000000": "id:00000000",
		"id:0A414141": "id:0A414141", // a control character
		"id:4946":     "id:4946",
		"id:zz":       "id:zz",
		"IFX":         "IFX",
		"":            "",
	} {
		if got := (ek.Names{Manufacturer: manufacturer}).Vendor(); got != want {
			t.Errorf("%q: got %q, want %q", manufacturer, got, want)
		}
	}
}

func TestParseChain(t *testing.T) {
	root := newCA(t, "Root", nil)
	a, b := newCA(t, "A", root).Cert, newCA(t, "B", root).Cert
	both := slices.Concat(a.Raw, b.Raw)
	ff := bytes.Repeat([]byte{0xFF}, 50)
	modulus := new(big.Int).SetBit(big.NewInt(1), 16383, 1) // nobody has it, and nobody needs to
	hugeRSA := root.Issue(t, &rsa.PublicKey{N: modulus, E: 65537}, pkix.Name{}).Raw
	var many []byte
	for range 33 {
		many = append(many, a.Raw...)
	}
	tests := []struct {
		name  string
		blobs [][]byte
		want  []*x509.Certificate
		err   string
	}{
		{name: "nothing"},
		{name: "blank", blobs: [][]byte{ff, ff}},
		{name: "blank with the byte of a sequence", blobs: [][]byte{bytes.Repeat([]byte{0x30}, 99)}},
		{name: "concatenated", blobs: [][]byte{both}, want: []*x509.Certificate{a, b}},
		{name: "one in each index", blobs: [][]byte{a.Raw, b.Raw}, want: []*x509.Certificate{a, b}},
		{name: "cut inside a certificate", blobs: [][]byte{both[:100], both[100:101], both[101:]}, want: []*x509.Certificate{a, b}},
		{name: "padded", blobs: [][]byte{both, ff}, want: []*x509.Certificate{a, b}},
		{name: "padding ends with the byte of a sequence", blobs: [][]byte{a.Raw, {0x30, 0x30, 0x30}}, want: []*x509.Certificate{a}},
		{name: "each padded", blobs: [][]byte{a.Raw, ff, b.Raw, ff}, want: []*x509.Certificate{a, b}},
		{name: "mixed tail", blobs: [][]byte{a.Raw, {0xFF, 0x00}}, want: []*x509.Certificate{a}, err: "after number 1"},
		{name: "padding of bytes that are no UTF-8", blobs: [][]byte{a.Raw, {0xFF, 0xFE}, b.Raw}, want: []*x509.Certificate{a}, err: "after number 1"},
		{name: "truncated", blobs: [][]byte{both[:len(both)-1]}, want: []*x509.Certificate{a}, err: "after number 1"},
		{name: "another structure", blobs: [][]byte{a.Raw, {0x30, 0x03, 0x02, 0x01, 0x05}}, want: []*x509.Certificate{a}, err: "number 2 is no X.509"},
		{name: "RSA key of 16384 bits", blobs: [][]byte{a.Raw, hugeRSA}, want: []*x509.Certificate{a}, err: "number 2 is for an RSA key of 16384 bits"},
		{name: "too large", blobs: [][]byte{make([]byte, 64<<10), {0}}, err: "65537 bytes"},
		{name: "too many", blobs: [][]byte{many}, want: slices.Repeat([]*x509.Certificate{a}, 32), err: "more than 32"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := ek.ParseChain(test.blobs...)
			if test.err == "" && err != nil {
				t.Error(err)
			}
			var malformed *ek.MalformedError
			if test.err != "" && (!errors.As(err, &malformed) || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("got error %v, want a MalformedError with %q", err, test.err)
			}
			if !slices.EqualFunc(got, test.want, (*x509.Certificate).Equal) {
				t.Errorf("got %d certificates, want %d", len(got), len(test.want))
			}
		})
	}
}

func TestSameKey(t *testing.T) {
	rsaKey, ec := rsa2048().Public(), pki.NewKey(t).Public()
	type keys struct{ A, B any }
	var nilKey *ecdsa.PublicKey
	tests := map[keys]bool{
		{rsaKey, rsaKey}:                  true,
		{ec, ec}:                          true,
		{ec, pki.NewKey(t).Public()}:      false,
		{rsaKey, ec}:                      false,
		{ec, rsaKey}:                      false,
		{nil, nil}:                        false,
		{nilKey, nilKey}:                  false,
		{ec, nilKey}:                      false,
		{ec, nil}:                         false,
		{"key", "key"}:                    false,
		{rsa2048().N, rsa2048().Public()}: false,
	}
	for k, want := range tests {
		if got := ek.SameKey(k.A, k.B); got != want {
			t.Errorf("SameKey(%T, %T): got %v", k.A, k.B, got)
		}
	}
}

func TestKindOf(t *testing.T) {
	got := []ek.KeyKind{
		ek.KindOf(rsa2048().Public()),
		ek.KindOf(pki.NewKey(t).Public()),
		ek.KindOf(pki.NewKeyOn(t, elliptic.P384()).Public()),
		ek.KindOf(pki.NewKeyOn(t, elliptic.P521()).Public()),
		ek.KindOf(pki.NewKeyOn(t, elliptic.P224()).Public()),
		ek.KindOf(nil),
	}
	if diff := cmp.Diff([]ek.KeyKind{ek.RSA2048, ek.P256, ek.P384, ek.P521, "", ""}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
