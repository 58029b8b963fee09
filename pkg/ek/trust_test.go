package ek_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tpm2cloud/tpm2cloud/pkg/ek"
)

func pemOf(blockType string, ders ...[]byte) []byte {
	var b bytes.Buffer
	for _, der := range ders {
		pem.Encode(&b, &pem.Block{Type: blockType, Bytes: der})
	}
	return b.Bytes()
}

// writeFiles makes a directory with the files; a name may begin with a subdirectory.
func writeFiles(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLoadTrust(t *testing.T) {
	a, b, c, d := newCA(t, "A", nil).Cert, newCA(t, "B", nil).Cert, newCA(t, "C", nil).Cert, newCA(t, "D", nil).Cert
	text := func(s string, data []byte) []byte { return append([]byte(s), data...) }
	first := writeFiles(t, map[string][]byte{
		"1.pem":        text("Subject: CN=A\r\n", pemOf("CERTIFICATE", a.Raw, b.Raw)),
		"2.CER":        c.Raw,
		"vendor/x.crt": pemOf("CERTIFICATE", d.Raw),
		"README":       []byte("see the manual"),
	})
	second := writeFiles(t, map[string][]byte{"again.der": a.Raw})
	if err := os.Symlink(filepath.Join(first, "2.CER"), filepath.Join(second, "link.pem")); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(first, "missing")

	trust, err := ek.LoadTrust(first, missing, second)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(trust.Anchors, []*x509.Certificate{a, b, c, d}, (*x509.Certificate).Equal) {
		t.Errorf("got %d anchors, want A, B, C, D", len(trust.Anchors))
	}
	if diff := cmp.Diff([]string{missing}, trust.Missing); diff != "" {
		t.Errorf("Missing (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{filepath.Join(first, "README")}, trust.Ignored); diff != "" {
		t.Errorf("Ignored (-want +got)\n%s", diff)
	}
	if trust.Empty() {
		t.Error("Empty")
	}

	trust, err = ek.LoadTrust(missing)
	if err != nil || !trust.Empty() {
		t.Errorf("missing directory alone: got %v, %v", trust, err)
	}
}

func TestLoadTrustErrors(t *testing.T) {
	good := newCA(t, "A", nil).Cert
	goodPEM := pemOf("CERTIFICATE", good.Raw)
	for name, test := range map[string]struct {
		data []byte
		err  string
	}{
		"empty":             {nil, "neither PEM nor the DER"},
		"text":              {[]byte("hello"), "neither PEM nor the DER"},
		"DER with a tail":   {append(slices.Clone(good.Raw), 0), "neither PEM nor the DER"},
		"private key":       {pemOf("PRIVATE KEY", []byte{1}), `"PRIVATE KEY"`},
		"malformed in PEM":  {pemOf("CERTIFICATE", good.Raw, []byte{1}), "certificate number 2"},
		"truncated PEM":     {slices.Concat(goodPEM, goodPEM[:len(goodPEM)/2]), "only 1 of its 2 PEM blocks"},
		"damaged first PEM": {slices.Concat([]byte("-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n"), goodPEM), "only 1 of its 2 PEM blocks"},
		"too large":         {make([]byte, 8<<20+1), "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := writeFiles(t, map[string][]byte{"bad.pem": test.data, "good.pem": goodPEM})
			trust, err := ek.LoadTrust(dir)
			if trust != nil || err == nil || !strings.Contains(err.Error(), test.err) || !strings.Contains(err.Error(), filepath.Join(dir, "bad.pem")) {
				t.Errorf("got %v, want an error with the file's name and %q", err, test.err)
			}
		})
	}
	t.Run("dangling link", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Symlink("nowhere", filepath.Join(dir, "a.pem")); err != nil {
			t.Fatal(err)
		}
		if _, err := ek.LoadTrust(dir); err == nil {
			t.Error("accepted")
		}
	})
	t.Run("link to a directory", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Symlink(t.TempDir(), filepath.Join(dir, "a.pem")); err != nil {
			t.Fatal(err)
		}
		if _, err := ek.LoadTrust(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("file as a directory", func(t *testing.T) {
		dir := writeFiles(t, map[string][]byte{"a.pem": goodPEM})
		if _, err := ek.LoadTrust(filepath.Join(dir, "a.pem")); err == nil || !strings.Contains(err.Error(), "not a directory") {
			t.Errorf("got %v", err)
		}
	})
}
