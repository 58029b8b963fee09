package identity

import (
	"crypto/x509"
	"path/filepath"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// SetAside moves the files of all programs out of the way, because they were
// made with another TPM: each into the directory "foreign-NAME" beside its
// place. Nothing is deleted. The record of the EK goes last: as long as it is
// there, the state is known to be foreign, and a run that was cut goes on. It
// returns the certificates of the other TPM's identities.
func SetAside(cfg *config.Config, name string) ([]*x509.Certificate, error) {
	for _, d := range []struct{ dir, last string }{
		{cfg.LDevID.Token.Store, ""},
		{filepath.Join(cfg.Run.State, Pins), ""},
		{filepath.Join(cfg.Run.State, Edge), ""},
		{filepath.Join(cfg.Run.State, LDevID), ""},
		{filepath.Join(cfg.Run.State, IDevID), FileEK},
	} {
		dir := store.Open(cfg.Path(d.dir), modeDir)
		if err := dir.SetAside(name, d.last); err != nil {
			return nil, err
		}
		if err := dir.Close(); err != nil {
			return nil, err
		}
	}
	// Now, because a run that was cut may have moved them already.
	var certificates []*x509.Certificate
	for _, which := range []string{IDevID, LDevID} {
		dir := store.Open(Dir(cfg, which).Path(store.Aside(name)), modeDir)
		if chain, err := ReadChain(dir); err == nil {
			certificates = append(certificates, chain.Leaf)
		}
		if err := dir.Close(); err != nil {
			return nil, err
		}
	}
	return certificates, nil
}
