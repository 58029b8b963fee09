package identity

import (
	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// Template is what a DevID key of an algorithm is made from.
func Template(a config.KeyAlgorithm) tpm2.TPMTPublic {
	return tpm.DevIDTemplate(a == config.RSA2048)
}

// Algorithm is the one from whose template a DevID key was made, or "" for a
// key that is none.
func Algorithm(key *tpm.Key) config.KeyAlgorithm {
	for _, a := range []config.KeyAlgorithm{config.ECCP256, config.RSA2048} {
		if key.Matches(Template(a)) {
			return a
		}
	}
	return ""
}
