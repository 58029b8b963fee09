package token

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
)

var (
	basePointX = elliptic.P256().Params().Gx.Bytes()
	basePointY = elliptic.P256().Params().Gy.Bytes()
)

// The vectors of TestSealAuth and TestUnwrapAuth were made by tpm2_ptool's own
// functions, 1.9.0.

func TestSealAuth(t *testing.T) {
	for _, tt := range []struct{ pin, salt, want string }{
		{"12345678", "aaaaaaaa00112233", "842eb8f01d8cca86beca8e6f0f282ece"},
		{"", "", "e3b0c44298fc1c149afbf4c8996fb924"},
	} {
		if got := string(SealAuth(tt.pin, tt.salt)); got != tt.want {
			t.Errorf("SealAuth(%q, %q) = %s, want %s", tt.pin, tt.salt, got, tt.want)
		}
	}
}

var testWrappingKey = []byte("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")

func TestUnwrapAuth(t *testing.T) {
	const good = "fc9f3c1ab2f5cdd7ecf2aba2:ed9adccb6b509fd5fea1855ed224865e:ec0f6eb0a4ef9c58be6e82cd10351f98d595450fb874934ebfa6a5df6c869222"
	for _, tt := range []struct {
		wrapped, want string
		err           error
	}{
		{good, "0123456789abcdef0123456789abcdef", nil},
		{"f28ddf48535a7e4e4c12ddde:5da6395b47e4e94800289e9fac4732d3:", "", nil}, // ptool's empty auth
		{"", "", nil},
		{strings.Replace(good, ":", ";", 1), "", ErrCorrupt},
		{good + ":00", "", ErrCorrupt},
		{good[2:], "", ErrCorrupt},
		{"zz" + good[2:], "", ErrCorrupt},
		{good[:len(good)-2], "", ErrWrongKey},
	} {
		got, err := UnwrapAuth(testWrappingKey, tt.wrapped)
		if string(got) != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("UnwrapAuth(%q) = %q, %v", tt.wrapped, got, err)
		}
	}
	if _, err := UnwrapAuth([]byte(strings.Repeat("ab", 32)), good); !errors.Is(err, ErrWrongKey) {
		t.Errorf("another key: %v", err)
	}
	for _, key := range []string{"", "00", strings.Repeat("x", 64), strings.Repeat("a", 66)} {
		if _, err := UnwrapAuth([]byte(key), good); err == nil || key != "" && strings.Contains(err.Error(), key) {
			t.Errorf("key %q: %v", key, err)
		}
	}
	wrapped := must[string](t)(WrapAuth(testWrappingKey, []byte("auth"), rand.Reader))
	if got, err := UnwrapAuth(testWrappingKey, wrapped); string(got) != "auth" || err != nil {
		t.Errorf("there and back: %q, %v", got, err)
	}
	if _, err := WrapAuth(testWrappingKey, nil, strings.NewReader("short")); err == nil {
		t.Error("an IV without randomness")
	}
}

const testPrimary = `---
!!map {
  ? !!str "transient"
  : !!bool "false",
  ? !!str "esys-tr"
  : !!str "` + testESYSTR + `",
}
`

func TestParsePrimary(t *testing.T) {
	p := must[Primary](t)(parsePrimary(testPrimary))
	if p.Handle != 0x81000001 || len(p.Name) != 34 || len(p.Public) != 2+0x11a {
		t.Errorf("%+v", p)
	}
	if p := must[Primary](t)(parsePrimary(`{"transient": true, "template-name": "tpm2-tools-default"}`)); p.Handle != 0 {
		t.Errorf("%+v", p)
	}
	if err := (Primary{}).Check(0, nil); !errors.Is(err, ErrOtherParent) {
		t.Errorf("a transient primary passed: %v", err)
	}
	raw, _ := hex.DecodeString(testESYSTR)
	for name, b := range map[string][]byte{
		"short":      raw[:len(raw)-1],
		"long":       append(slices.Clone(raw), 0),
		"other name": bytes.Replace(raw, raw[10:14], []byte{1, 2, 3, 4}, 1),
		"not a key":  bytes.Replace(raw, []byte{0, 0, 0, 1, 1, 0x1a}, []byte{0, 0, 0, 2, 1, 0x1a}, 1),
	} {
		if _, err := parseESYSTR(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestYAML(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want string // "" for an error
	}{
		{"---\n!!map {\n  ? !!int \"0\"\n  : !!int \"3\",\n}\n...\n", "0=3"},
		{"{}", "-"},
		{"{a: b, 'c': \"d\\n\", e: [!!int \"1\", 2]}", "a=b c=d\n e=[1 2]"},
		{"{a: []}", "a=[]"},
		{"{a: 1, a: 2}", "a=1 a=2"},
		{"", ""}, {"{", ""}, {"{a", ""}, {"{a:", ""}, {"{a: b", ""}, {"{a: \"b}", ""}, {"{a: [1}", ""},
		{"{a: b} c", ""}, {"[]", ""}, {"{a: {b: c}}", ""}, {"{a: [[1]]}", ""}, {"{a b}", ""}, {"{a: b c: d}", ""},
		{"!!map", ""},
		{"{" + strings.Repeat("a: b,", maxEntries) + "}", ""},
		{"{a: " + strings.Repeat("b", maxYAML) + "}", ""},
	} {
		entries, err := parseYAML(tt.in)
		if err != nil {
			if tt.want != "" || !errors.Is(err, ErrCorrupt) {
				t.Errorf("%.40q: %v", tt.in, err)
			}
			continue
		}
		var got []string
		for _, e := range entries {
			v := e.value.text
			if e.value.seq != nil {
				v = "[" + strings.Join(e.value.seq, " ") + "]"
			}
			got = append(got, e.key+"="+v)
		}
		if s := strings.Join(got, " "); s != tt.want && (tt.want != "-" || s != "") {
			t.Errorf("%.40q: %q, want %q", tt.in, s, tt.want)
		}
	}
}

// Written by C_InitToken of 1.9.0 under an RSA storage key.
const testESYSTR = "" +
	"810000010022000bd11f262a49bc233fd86e4716ec3b23bd3598c82f7242170113dd063a805927e700000001011a0001" +
	"000b00030072000000060080004300100800000000000100d1802995d86e41f7cd7460dd7ca96e06ea24317c00722d8a" +
	"69cefba09411825d934b6cf4c3b59c466b26aed4505e4087992bf80ef540073030c84ded479fa32ad10150aeff60d674" +
	"c90b931b6893c34b5c05e2747282d587df3b1dd267c9758b7fe6562b8ce74c8c28872126b66488cb101909bc0b5c15eb" +
	"12a984c62619881a7fb94002aafcea2bf37c4aa10b920b5d8dc9e7fab32845ca9f22558aa222484c762a24049726af82" +
	"f80e78de06932cb117a758f654c7bd8325d79f2a04e38ea609a233784b16b87e4f3b7d5f818d491fa5cd06259fda3196" +
	"7b9cc1e90a93467347b008fb5d9fa9b07c2ac0e954caa0fea735e64fd947d24e79bbfe3a48d647df"
