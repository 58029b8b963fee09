package ldevid

import (
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/limit"
	"github.com/tpm2cloud/tpm2cloud/pkg/token"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// FuzzPublicArea: the token's database is read by whoever may write it. What is taken for a key or a
// seal of ours has a public area that is one.
func FuzzPublicArea(f *testing.F) {
	for _, area := range []tpm2.TPMTPublic{tpm.DevIDTemplate(false), tpm.DevIDTemplate(true), tpm.SealTemplate(), tpm.SRKTemplate} {
		f.Add(tpm2.Marshal(tpm2.New2B(area)))
	}
	f.Add([]byte{})
	f.Add([]byte{0, 4, 0, 1, 0, 11})
	f.Fuzz(func(t *testing.T, blob []byte) {
		defer limit.Time(t, 5*time.Second)()
		pair := &token.Key{TPM2BPublic: blob, WrappedAuth: "x"}
		area := public(pair)
		if linkable(pair) {
			if area == nil || !area.ObjectAttributes.SignEncrypt || area.ObjectAttributes.Restricted || pairName(pair) == nil {
				t.Errorf("linkable: %+v", area)
			}
		}
		if sealed(blob) && (area == nil || !area.ObjectAttributes.NoDA) {
			t.Errorf("sealed: %+v", area)
		}
		if area != nil && len(pairName(pair)) == 1 {
			t.Errorf("the name %x", pairName(pair))
		}
	})
}
