package cmd

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
)

// ownTemplate is what a vendor makes its endorsement key from that does not take
// the TCG's template as it is: with -template its own lies in NV, with -nonce a
// nonce for the TCG's. swtpm puts the template of its P-256 key where the TCG has
// the nonce: -misplaced.
func ownTemplate(t testing.TB, device transport.TPM, certificate tpm2.TPMHandle, template tpm2.TPMTPublic, args []string) tpm2.TPMTPublic {
	t.Helper()
	nonce := bytes.Repeat([]byte{0x5a}, 20)
	unique := func(size int) []byte { return append(bytes.Clone(nonce), make([]byte, size-len(nonce))...) }
	changed := template
	if template.Type == tpm2.TPMAlgRSA {
		changed.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: unique(256)})
	} else {
		changed.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: unique(32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}})
	}
	switch {
	case slices.Contains(args, "-template"):
		tpmkit.PutNV(t, device, certificate+2, tpm2.Marshal(changed))
	case slices.Contains(args, "-nonce"):
		tpmkit.PutNV(t, device, certificate+1, nonce)
	case slices.Contains(args, "-misplaced"):
		tpmkit.PutNV(t, device, certificate+1, tpm2.Marshal(changed))
	default:
		return template
	}
	return changed
}
