package main

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// message joins fields in hex; the size in the header may be left as SIZE.
func message(t *testing.T, fields ...string) []byte {
	t.Helper()
	text := strings.ReplaceAll(strings.Join(fields, ""), " ", "")
	text = strings.Replace(text, "SIZE", hexSize(len(text)/2+2), 1) // 4 letters for 4 bytes
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func hexSize(n int) string {
	return hex.EncodeToString([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func TestClassify(t *testing.T) {
	const (
		ok       = "8001 0000000a 00000000"
		password = "00000009 40000009 0000 00 0000" // an authorisation area
		secret   = "0004 0000 0000"                 // inSensitive, both parts empty
	)
	for name, c := range map[string]struct {
		command, response []string
		code              tpm2.TPMCC
		cost              Cost
	}{
		"RSA primary": {
			[]string{"8002 SIZE 00000131 4000000b", password, secret, "0006 0001 000b 0000"}, []string{ok},
			tpm2.TPMCCCreatePrimary, RSAKey},
		"ECC child": {
			[]string{"8002 SIZE 00000153 81000001", password, secret, "0006 0023 000b 0000"}, []string{ok},
			tpm2.TPMCCCreate, ECCKey},
		"ECC child by template": {
			[]string{"8002 SIZE 00000191 81010001", password, secret, "0006 0023 000b 0000"}, []string{ok},
			tpm2.TPMCCCreateLoaded, ECCKey},
		"sealed data, its value encrypted": {
			[]string{"8002 SIZE 00000153 81000001", password, "0008 a1a2a3a4a5a6a7a8", "0006 0008 000b 0000"}, []string{ok},
			tpm2.TPMCCCreate, Plain},
		"refused": {
			[]string{"8002 SIZE 00000153 81000001", password, secret, "0006 0001 000b 0000"}, []string{"8001 0000000a 00000902"},
			tpm2.TPMCCCreate, Plain},
		"too short": {
			[]string{"8002 SIZE 00000153 81000001 00001000"}, []string{ok},
			tpm2.TPMCCCreate, Plain},
		"ECDSA": {
			[]string{"8002 SIZE 0000015d 81020000"}, []string{"8002 SIZE 00000000 00000048 0018 000b 0020"},
			tpm2.TPMCCSign, ECCPrivate},
		"RSASSA": {
			[]string{"8002 SIZE 0000015d 81020000"}, []string{"8002 SIZE 00000000 00000106 0014 000b 0100"},
			tpm2.TPMCCSign, RSAPrivate},
		"RSAPSS without session": {
			[]string{"8001 SIZE 0000015d 81020000"}, []string{"8001 SIZE 00000000 0016 000b 0100"},
			tpm2.TPMCCSign, RSAPrivate},
		"HMAC": {
			[]string{"8002 SIZE 0000015d 81020000"}, []string{"8002 SIZE 00000000 00000024 0005 000b"},
			tpm2.TPMCCSign, Plain},
		"RSA decryption": {
			[]string{"8002 SIZE 00000159 81020000"}, []string{ok},
			tpm2.TPMCCRSADecrypt, RSAPrivate},
		"session without salt": {
			[]string{"8001 SIZE 00000176 40000007 40000007 0004 01020304 0000 00 0010 000b"}, []string{ok},
			tpm2.TPMCCStartAuthSession, Plain},
		"session salted to RSA": {
			[]string{"8001 SIZE 00000176 81010001 40000007 0004 01020304 0100", strings.Repeat("5a", 256), "00 0010 000b"}, []string{ok},
			tpm2.TPMCCStartAuthSession, RSASalt},
		"session salted to P-256": {
			[]string{"8001 SIZE 00000176 81000001 40000007 0004 01020304 0044", strings.Repeat("5a", 68), "00 0010 000b"}, []string{ok},
			tpm2.TPMCCStartAuthSession, ECCSalt},
		"something else": {
			[]string{"8001 SIZE 0000017b 0010"}, []string{ok},
			tpm2.TPMCCGetRandom, Plain},
	} {
		t.Run(name, func(t *testing.T) {
			got := classify(message(t, c.command...), message(t, c.response...))
			if got.Code != c.code || got.Cost != c.cost {
				t.Errorf("got %s, %s; want %s, %s", nameOf(got.Code), got.Cost, nameOf(c.code), c.cost)
			}
		})
	}
}

func TestNameOf(t *testing.T) {
	if got := nameOf(tpm2.TPMCCNVWrite); got != "NV_Write" {
		t.Errorf("got %s, want NV_Write", got)
	}
	if got := nameOf(0x20000001); got != "0x20000001" {
		t.Errorf("got %s, want the code of the vendor's command", got)
	}
}

func TestModel(t *testing.T) {
	s := sample{commands: []Command{{Cost: RSAKey}, {Cost: ECCPrivate}, {Cost: RSASalt}, {}}}
	if got, want := s.on(slb9670), 2295*time.Millisecond; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := s.on(slb9670.withSalts()), 2443*time.Millisecond; got != want {
		t.Errorf("with salts: got %s, want %s", got, want)
	}
}
