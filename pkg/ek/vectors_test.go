package ek_test

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tpm2cloud/tpm2cloud/pkg/ek"
)

// The real certificates lie beside the repository, because they are their vendors'.
const vectorDir = "../../../shared/testdata/ek"

func vector(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(vectorDir, name))
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("no real certificates at %s", vectorDir)
	} else if err != nil {
		t.Fatal(err)
	}
	return data
}

// vectorCerts reads the certificates of a comma-separated list of files.
func vectorCerts(t testing.TB, list string) []*x509.Certificate {
	t.Helper()
	dir := t.TempDir()
	for _, name := range strings.Split(list, ",") {
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), vector(t, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	trust, err := ek.LoadTrust(dir)
	if err != nil {
		t.Fatal(err)
	}
	return trust.Anchors
}

func TestVectors(t *testing.T) {
	type want struct {
		Names   string
		Kind    ek.KeyKind
		Padding int
		Chain   int   // number of certificates, if accepted
		Err     error // if rejected
	}
	wants := map[string]want{
		"leaf/st-rsa-padded.bin":        {Names: "STM ST33HTPHAHB4 id:00490004", Kind: ek.RSA2048, Padding: 431, Chain: 4},
		"leaf/st-ecc.bin":               {Names: "STM ST33HTPHAHB4 id:00490004", Kind: ek.P256, Chain: 4},
		"leaf/intel-ptt-rsa.bin":        {Names: "INTC SPT id:00020000", Kind: ek.RSA2048, Chain: 3},
		"leaf/amd-root-not-ek.bin":      {Kind: ek.RSA2048, Err: ek.ErrIsCA},
		"leaf/nuvoton-root-not-ek.bin":  {Kind: ek.P256, Err: ek.ErrIsCA},
		"leaf/ifx-tpm12-oaep.bin":       {Names: "IFX SLB9660xx1.2 id:0428", Kind: ek.RSA2048, Err: ek.ErrSHA1},
		"leaf/nuvoton-tpm12-padded.bin": {Names: "NTC NPCT6xx id:0581", Kind: ek.RSA2048, Padding: 192, Err: ek.ErrSHA1},
	}
	lines := strings.Split(strings.TrimSpace(string(vector(t, "VECTORS.tsv"))), "\n")
	if len(lines)-1 != len(wants) {
		t.Errorf("VECTORS.tsv lists %d certificates, the test knows %d", len(lines)-1, len(wants))
	}
	for _, line := range lines[1:] {
		f := strings.Split(line, "\t")
		file, sum, verdict, intermediates, root := f[0], f[1], f[3], f[5], f[6]
		t.Run(file, func(t *testing.T) {
			blob := vector(t, file)
			if got := sha256.Sum256(blob); hex.EncodeToString(got[:]) != sum {
				t.Fatalf("the file is not the one that VECTORS.tsv lists")
			}
			want, ok := wants[file]
			if !ok {
				t.Fatal("the test does not know it")
			}
			c := mustParse(t, blob)
			o := ek.Options{At: now}
			if verdict == "accept" {
				o.Anchors, o.Intermediates = vectorCerts(t, root), vectorCerts(t, intermediates)
			} else {
				// Trusted, so that the reason to reject it can't be a missing root.
				o.Anchors = []*x509.Certificate{c.X509}
			}
			v, err := ek.Verify(c, o)
			if (err == nil) != (verdict == "accept") {
				t.Fatalf("got error %v, want verdict %s", err, verdict)
			}
			if !errors.Is(err, want.Err) {
				t.Errorf("got error %v, want %v", err, want.Err)
			}
			got := want
			got.Names, got.Kind, got.Padding = c.Names.String(), c.Kind, c.Padding
			if v != nil {
				got.Chain = len(v.Chain)
				if len(v.Warnings) > 0 {
					t.Errorf("unexpected warnings: %q", v.Warnings)
				}
			}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b error) bool { return a == b })); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestVectorTrust takes a chain apart whose root was issued by a public CA.
func TestVectorTrust(t *testing.T) {
	c := mustParse(t, vector(t, "leaf/st-rsa-padded.bin"))
	const (
		ica    = "intermediates/stm-tpm-ek-intermediate-ca-05.pem"
		stRoot = "intermediates/stm-tpm-ek-root-ca.pem"
		root   = "roots/globalsign-tpm-root-ca.pem"
	)

	t.Run("root that is not self-signed", func(t *testing.T) {
		v, err := ek.Verify(c, ek.Options{Anchors: vectorCerts(t, stRoot), Intermediates: vectorCerts(t, ica), At: now})
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Chain) != 3 {
			t.Errorf("got a chain of %d certificates, want 3", len(v.Chain))
		}
	})
	t.Run("intermediate alone", func(t *testing.T) {
		if _, err := ek.Verify(c, ek.Options{Anchors: vectorCerts(t, ica), At: now}); err != nil {
			t.Error(err)
		}
	})
	t.Run("intermediate missing", func(t *testing.T) {
		_, err := ek.Verify(c, ek.Options{Anchors: vectorCerts(t, root), At: now})
		var unknown *ek.UnknownIssuerError
		if !errors.As(err, &unknown) {
			t.Fatalf("got %v, want an UnknownIssuerError", err)
		}
		want := &ek.UnknownIssuerError{
			Subject:        "STM ST33HTPHAHB4 id:00490004",
			Issuer:         "CN=STM TPM EK Intermediate CA 05,O=STMicroelectronics NV,C=CH",
			AuthorityKeyID: []byte("\x1a\xdb\x99\x4a\xb5\x8b\xe5\x7a\x0c\xc9\xb9\x00\xe7\x85\x1e\x1a\x43\xc0\x86\x60"),
			AIA:            []string{"http://secure.globalsign.com/stmtpmekint05.crt"},
		}
		if diff := cmp.Diff(want, unknown); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
	t.Run("expired", func(t *testing.T) {
		o := ek.Options{Anchors: vectorCerts(t, root), Intermediates: vectorCerts(t, ica+","+stRoot)}
		o.At = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
		_, err := ek.Verify(c, o)
		var expired *ek.ExpiredError
		if !errors.As(err, &expired) {
			t.Fatalf("got %v, want an ExpiredError", err)
		}
		o.AllowExpired = true
		v, err := ek.Verify(c, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%q", v.Warnings)
	})
}
