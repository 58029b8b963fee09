package identity

import (
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// OpenTPM opens the configured TPM with the configured authorisation values.
func OpenTPM(cfg *config.Config) (*tpm.TPM, error) {
	var secrets tpm.Secrets
	for _, s := range []struct {
		name  config.Secret
		value *[]byte
	}{
		{cfg.TPM.OwnerAuth, &secrets.Owner},
		{cfg.TPM.EndorsementAuth, &secrets.Endorsement},
		{cfg.TPM.LockoutAuth, &secrets.Lockout},
		{cfg.TPM.PlatformAuth, &secrets.Platform},
	} {
		if s.name == "" {
			continue
		}
		value, err := cfg.ReadSecret(s.name)
		if err != nil {
			return nil, err
		}
		*s.value = []byte(value)
	}
	return tpm.Open(cfg.TPMDevice(), secrets)
}
