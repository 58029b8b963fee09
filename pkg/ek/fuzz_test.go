package ek_test

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/ek"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/limit"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
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
		defer limit.Time(t, 5*time.Second)()
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
		defer limit.Time(t, 5*time.Second)()
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

// FuzzFind reads the whole of a TPM's memory as somebody may have written it: a list of indices, each
// with its length and content. What is found to be usable is of its slot's kind, and what is verified
// has good signatures up to the anchor, whatever lies in the chain's indices.
func FuzzFind(f *testing.F) {
	root := newCA(f, "Root", nil)
	ica := newCA(f, "CA", root)
	der := ica.ek(f)
	var memory []byte
	for _, index := range []struct {
		number  uint32
		content []byte
	}{{0x01C0000A, append(slices.Clone(der), 0xff, 0xff)}, {0x01C00002, []byte{0, 0, 0, 0}}, {ek.ChainFirst + 1, root.Cert.Raw[9:]}, {ek.ChainFirst, slices.Concat(ica.Cert.Raw, root.Cert.Raw[:9])}} {
		memory = binary.BigEndian.AppendUint32(memory, index.number)
		memory = binary.BigEndian.AppendUint16(memory, uint16(len(index.content)))
		memory = append(memory, index.content...)
	}
	f.Add(memory)
	f.Add(memory[:len(der)])
	f.Fuzz(func(t *testing.T, memory []byte) {
		defer limit.Time(t, 5*time.Second)()
		contents := map[uint32][]byte{}
		var defined []uint32
		for len(memory) >= 6 {
			index, size := binary.BigEndian.Uint32(memory), int(binary.BigEndian.Uint16(memory[4:]))
			memory = memory[6:]
			size = min(size, len(memory))
			contents[index], memory = memory[:size], memory[size:]
			defined = append(defined, index)
		}
		found, err := ek.Find(defined, func(index uint32) ([]byte, error) {
			content, ok := contents[index]
			if !ok {
				t.Errorf("%#x was read, and is not defined", index)
			}
			if len(content) == 1 {
				return nil, ek.ErrUnreadable
			}
			return content, nil
		})
		if err != nil {
			t.Fatalf("no read failed: %v", err)
		}
		entry, err := found.Usable()
		if err != nil {
			return
		}
		if entry.Certificate == nil || entry.Certificate.Kind != entry.Slot.Key || !entry.Slot.Key.Supported() {
			t.Errorf("usable: %+v", entry)
		}
		verdict, err := ek.Verify(entry.Certificate, ek.Options{Anchors: certs(root), Intermediates: found.Chain, At: now})
		if err != nil {
			return
		}
		if verdict.Chain[len(verdict.Chain)-1] != root.Cert {
			t.Error("the chain does not end at the anchor")
		}
		for i, c := range verdict.Chain[:len(verdict.Chain)-1] {
			if err := c.CheckSignatureFrom(verdict.Chain[i+1]); err != nil {
				t.Errorf("number %d of the chain: %v", i, err)
			}
		}
	})
}

// FuzzLoadTrust reads a file of a trust directory. Nothing in it is passed over: its certificates are
// all anchors, or there is an error that names the file.
func FuzzLoadTrust(f *testing.F) {
	root := newCA(f, "Root", nil)
	f.Add(root.Cert.Raw)
	f.Add(pki.PEM(root.Cert, newCA(f, "CA", root).Cert))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		defer limit.Time(t, 5*time.Second)()
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "root.pem"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		trust, err := ek.LoadTrust(dir)
		if err != nil {
			if !strings.Contains(err.Error(), "root.pem") || trust != nil {
				t.Errorf("got %v and %v", trust, err)
			}
			return
		}
		blocks := max(bytes.Count(data, []byte("-----BEGIN ")), 1)
		if n := len(trust.Anchors); n == 0 || n > blocks {
			t.Errorf("%d anchors in %d blocks", n, blocks)
		}
		for _, c := range trust.Anchors {
			if again, err := x509.ParseCertificate(c.Raw); err != nil || !again.Equal(c) {
				t.Errorf("an anchor cannot be read again: %v", err)
			}
		}
	})
}
