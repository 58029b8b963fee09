package pki

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"testing"
	"time"
)

// End lets the certificate that is the first in a file end an hour ago: its CA,
// whose certificate and key (SEC 1) are in files as well, signs it again with dates
// of the past.
func End(t testing.TB, file, caFile, keyFile string) {
	t.Helper()
	chain := readFile(t, file)
	block, rest := pem.Decode(chain)
	ca, _ := pem.Decode(readFile(t, caFile))
	key, _ := pem.Decode(readFile(t, keyFile))
	if block == nil || ca == nil || key == nil {
		t.Fatalf("%s, %s or %s is not in PEM", file, caFile, keyFile)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := x509.ParseCertificate(ca.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := x509.ParseECPrivateKey(key.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	leaf.NotBefore, leaf.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-time.Hour)
	if block.Bytes, err = x509.CreateCertificate(rand.Reader, leaf, issuer, leaf.PublicKey, signer); err != nil {
		t.Fatal(err)
	}
	// In its place: it keeps owner and mode.
	if err := os.WriteFile(file, append(pem.EncodeToMemory(block), rest...), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
