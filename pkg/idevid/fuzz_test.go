package idevid

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/ek"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/limit"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// FuzzTemplate: whatever lies in NV beside an EK certificate, the template that the TPM is asked for
// can be sent to it, and is for a key of the certificate's kind where NV has none.
func FuzzTemplate(f *testing.F) {
	f.Add(true, []byte(nil), []byte(nil))
	f.Add(true, tpm2.Marshal(tpm.EKTemplate(true, false)), []byte(nil))
	f.Add(false, []byte(nil), bytes.Repeat([]byte{7}, 32))
	f.Add(false, []byte(nil), tpm2.Marshal(tpm.EKTemplate(false, false)))
	f.Fuzz(func(t *testing.T, rsa bool, template, nonce []byte) {
		defer limit.Time(t, 5*time.Second)()
		kind := ek.P256
		if rsa {
			kind = ek.RSA2048
		}
		v := &vendor{template: template, nonce: nonce}
		got, err := (&Program{vendor: v}).ekTemplate(&ek.Entry{Certificate: &ek.Certificate{Kind: kind}})
		if err != nil {
			return
		}
		sent := tpm2.Marshal(tpm2.New2B(got))
		again, err := tpm2.Unmarshal[tpm2.TPM2BPublic](sent)
		if err != nil {
			t.Fatalf("what would be sent cannot be read: %v", err)
		}
		area, err := again.Contents()
		if err != nil || !bytes.Equal(tpm2.Marshal(area), tpm2.Marshal(got)) {
			t.Errorf("what would be sent is another template: %v", err)
		}
		if template == nil && len(nonce) <= nonceMax && (got.Type == tpm2.TPMAlgRSA) != rsa {
			t.Errorf("the template is for %v", got.Type)
		}
		_ = usableEK(&tpm.Key{Public: got}, nil)
	})
}

// FuzzHalfOf: what is overwritten as half of our own certificate begins as ours does, and has
// nothing of anybody else's in it.
func FuzzHalfOf(f *testing.F) {
	f.Add([]byte("certi\xff\xff"), []byte("certificate"))
	f.Add([]byte("certi\x00\x00\x00\x00\x00\x00"), []byte("certificate"))
	f.Fuzz(func(t *testing.T, data, whole []byte) {
		if !halfOf(data, whole) {
			return
		}
		if len(data) != len(whole) || len(data) == 0 || data[0] != whole[0] {
			t.Fatalf("%q is no half of %q", data, whole)
		}
		for i := range data {
			if data[i] != whole[i] && data[i] != 0xff && data[i] != 0 {
				t.Errorf("%q has a byte of somebody else's at %d", data, i)
			}
		}
	})
}
