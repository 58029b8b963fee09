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
// there, the state is known to be foreign, and a run that was cut goes on. The
// result are the certificates that the other TPM has, this device's name in them.
func SetAside(cfg *config.Config, name string) (certificates []*x509.Certificate, err error) {
	for _, d := range []struct{ dir, last string }{
		{cfg.LDevID.Token.Store, ""},
		{filepath.Join(cfg.Run.State, Pins), ""},
		{filepath.Join(cfg.Run.State, Edge), ""},
		{filepath.Join(cfg.Run.State, LDevID), ""},
		{filepath.Join(cfg.Run.State, IDevID), FileEK},
	} {
		dir := store.Open(cfg.Path(d.dir), modeDir)
		if err := dir.SetAside(name, d.last); err != nil {
			return certificates, err
		}
		if err := dir.Close(); err != nil {
			return certificates, err
		}
	}
	// Now, because a run that was cut has moved some of them already.
	for _, identity := range []string{IDevID, LDevID} {
		dir := store.Open(Dir(cfg, identity).Path(store.Aside(name)), modeDir)
		if chain, err := ReadChain(dir); err == nil {
			certificates = append(certificates, chain.Leaf)
		}
		if err := dir.Close(); err != nil {
			return certificates, err
		}
	}
	return certificates, nil
}
