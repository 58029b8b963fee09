package identity

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// The IDevID as others than its maker see it: read, proven, judged.

// makeFirst is what to do about an IDevID that is not there.
const makeFirst = "tpm2cloud-idevid makes it: run that first, or look at its result (tpm2cloud-idevid status)"

// ReadIDevID reads the certificate from NV, and the chain from disk where that
// is of the same certificate.
func ReadIDevID(t *tpm.TPM, dir *store.Dir) (*devid.Chain, error) {
	index, err := t.Index(tpm.IndexIDevID)
	if errors.Is(err, tpm.ErrNotFound) {
		return nil, step.As(step.Refused, makeFirst, fmt.Errorf("there is no IDevID certificate: %w", err))
	}
	if err != nil {
		return nil, err
	}
	data, err := t.Read(index)
	if errors.Is(err, tpm2.TPMRCNVUninitialized) {
		return nil, step.As(step.Refused, makeFirst, fmt.Errorf("there is no IDevID certificate: %w", err))
	}
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(data)
	if err != nil {
		return nil, step.As(step.Refused, makeFirst, fmt.Errorf("cannot read the IDevID certificate in NV %#x: %w", uint32(tpm.IndexIDevID), err))
	}
	if chain, err := ReadChain(dir); err == nil && chain.Leaf.Equal(leaf) {
		return chain, nil
	}
	return &devid.Chain{Leaf: leaf}, nil
}

// ProveIDevID has the TPM sign with the IDevID key, and so prove that the
// certificate is this device's.
func ProveIDevID(t *tpm.TPM, leaf *x509.Certificate) (*tpm.Key, error) {
	key, err := t.ReadPublic(tpm.HandleIDevID)
	if errors.Is(err, tpm.ErrNotFound) {
		return nil, step.As(step.Refused, makeFirst, fmt.Errorf("there is no IDevID key: %w", err))
	}
	if err != nil {
		return nil, err
	}
	signer, err := t.Signer(key)
	if err != nil {
		return nil, err
	}
	if !devid.SameKey(signer.Public(), leaf.PublicKey) {
		return nil, step.As(step.Refused, makeFirst,
			fmt.Errorf("cannot use the IDevID: the certificate in NV %#x is not for the key at %#x", uint32(tpm.IndexIDevID), uint32(tpm.HandleIDevID)))
	}
	challenge := make([]byte, crypto.SHA256.Size())
	rand.Read(challenge)
	// Sign verifies what the TPM answers.
	if _, err := signer.Sign(nil, challenge, crypto.SHA256); err != nil {
		return nil, fmt.Errorf("cannot prove the IDevID: %w", err)
	}
	return key, nil
}

// JudgeIDevID judges the certificate: its chain, and its name where one is
// expected. What it returns is as it should not be, and no error.
func JudgeIDevID(chain *devid.Chain, roots []*x509.Certificate, commonName string, now clock.Clock) ([]string, error) {
	checked, err := Check(chain, devid.Expect{
		Key: chain.Leaf.PublicKey, AnySubject: true, CommonName: commonName,
		NoExpiry: true, Outlives: true, Roots: roots, At: now.Time,
	})
	var name *devid.SubjectError
	switch {
	case err == nil:
		return checked.Warnings, nil
	case Undecided(err, now):
		return nil, step.As(step.Temporary, "the clock is not synchronised; it may be wrong", fmt.Errorf("cannot trust the IDevID: %w", err))
	case errors.As(err, &name):
		return nil, step.As(step.Refused, "[idevid] common_name, or [ldevid] idevid_common_name, says which name is expected",
			fmt.Errorf("cannot use the IDevID: %w", err))
	}
	return nil, step.As(step.Refused, "[ldevid] idevid_ca names the manufacturer's CA certificates", fmt.Errorf("cannot trust the IDevID: %w", err))
}

// IDevIDCA is the manufacturer's CA: the file that is named, or what was kept
// when this device enrolled.
func IDevIDCA(cfg *config.Config, file string, dir *store.Dir) ([]*x509.Certificate, error) {
	if file == "" {
		list, err := ReadCA(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, step.As(step.Refused, "this disk did not enrol the IDevID: name the manufacturer's CA certificates in [ldevid] idevid_ca",
				fmt.Errorf("cannot verify the IDevID: %w", err))
		}
		return list, err
	}
	path := cfg.Path(file)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, step.As(step.Configuration, "[ldevid] idevid_ca names the file", fmt.Errorf("cannot read the IDevID's CA certificates: %w", err))
	}
	list, err := devid.ParsePEM(data)
	if err != nil {
		return nil, step.As(step.Configuration, "[ldevid] idevid_ca names the file", fmt.Errorf("cannot read the IDevID's CA certificates %s: %w", path, err))
	}
	return list, nil
}
