package ek_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/ek"
)

// addVectors adds the real certificates to the seeds, if they are there.
func addVectors(f *testing.F) {
	f.Helper()
	files, err := filepath.Glob(filepath.Join(vectorDir, "leaf", "*.bin"))
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
}

// FuzzParse makes sure that whatever parses also survives being verified, that every failure is typed, and
// that padding doesn't change the result.
func FuzzParse(f *testing.F) {
	root := newCA(f, "Root", nil)
	der := root.ek(f)
	f.Add(der)
	f.Add(root.ekFor(f, rsa2048().Public()))
	f.Add(append([]byte{0x10, 0x01, 0x00, byte(len(der) >> 8), byte(len(der))}, der...))
	f.Add(append(slices.Clone(der), 0xFF, 0xFF))
	addVectors(f)
	f.Fuzz(func(t *testing.T, blob []byte) {
		c, err := ek.Parse(blob)
		if err != nil {
			var malformed *ek.MalformedError
			if !errors.As(err, &malformed) {
				t.Fatalf("untyped error: %v", err)
			}
			return
		}
		if c.Key == nil || len(c.X509.Raw)+c.Padding > len(blob) || !bytes.Contains(blob, c.X509.Raw) {
			t.Fatalf("key %v, %d bytes and %d of padding from %d", c.Key, len(c.X509.Raw), c.Padding, len(blob))
		}
		again, err := ek.Parse(append(slices.Clone(c.X509.Raw), 0xFF, 0xFF))
		if err != nil || !again.X509.Equal(c.X509) || again.Padding != 2 || again.Names != c.Names {
			t.Fatalf("padded: %v", err)
		}
		_ = c.Names.String()
		if v, err := ek.Verify(c, ek.Options{Anchors: certs(root), At: now, AllowExpired: true}); err == nil {
			if c.X509.CheckSignatureFrom(root.Cert) != nil || v.Chain[0] != c.X509 {
				t.Fatal("verified without a good signature")
			}
		}
	})
}

// FuzzParseChain makes sure that it doesn't matter where the chain is cut into indices, and that
// what it returns is in the input.
func FuzzParseChain(f *testing.F) {
	root := newCA(f, "Root", nil)
	ica := newCA(f, "CA", root)
	f.Add(slices.Concat(ica.Cert.Raw, root.Cert.Raw))
	f.Add(slices.Concat(ica.Cert.Raw, []byte{0xFF, 0xFF}, root.Cert.Raw, []byte{0, 0, 0}))
	f.Add(ica.Cert.Raw[:100])
	addVectors(f)
	f.Fuzz(func(t *testing.T, blob []byte) {
		chain, err := ek.ParseChain(blob)
		var malformed *ek.MalformedError
		if err != nil && !errors.As(err, &malformed) {
			t.Fatalf("untyped error: %v", err)
		}
		for _, cert := range chain {
			if !bytes.Contains(blob, cert.Raw) {
				t.Fatal("a certificate that is not in the input")
			}
		}
		cut := len(blob) / 3
		again, errAgain := ek.ParseChain(blob[:cut], blob[cut:])
		if len(again) != len(chain) || (err == nil) != (errAgain == nil) {
			t.Fatalf("cut: %d certificates, %v; whole: %d, %v", len(again), errAgain, len(chain), err)
		}
	})
}
