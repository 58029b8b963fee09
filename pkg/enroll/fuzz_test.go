package enroll

import (
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/limit"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// FuzzParseKey: a file for the method ca is a private key that has its public part, or an error
// that quotes nothing of it.
func FuzzParseKey(f *testing.F) {
	f.Add(pki.NewCA(f, "root", nil).KeyPEM(f))
	f.Add(pki.NewCAWithKey(f, "root", pki.NewRSAKey(f), nil).KeyPEM(f))
	f.Add([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"))
	f.Add([]byte("-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES\n\nMAA=\n-----END RSA PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > maxFile {
			return
		}
		defer limit.Time(t, 5*time.Second)()
		key, err := parseKey(data)
		if err == nil && (key == nil || key.Public() == nil) {
			t.Error("neither a key nor an error")
		}
	})
}
