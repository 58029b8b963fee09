// Package identity is what the device programs share: how an identity lies on
// disk, and how its certificate is got. The programs meet nowhere else, as
// their units do not.
//
// Each identity has a directory of its own below the state directory:
//
//	certificate.pem  leaf first, then the chain without the root
//	ca.pem           the CA certificates that the chain leads to
//	request.csr      a request in DER that no CA has answered yet
//	next.pem         a renewed certificate that is not in use yet, as
//	next-ca.pem      certificate.pem and ca.pem
//	refused.json     when the server said no, and to what
//	later.json       when the server wants to be asked again
//
// Certificates are public (0644 in directories of 0755), because the agent
// reads them; what only the TPM can use is 0600 all the same.
package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// The directories of the identities below the state directory.
const (
	IDevID = "idevid"
	LDevID = "ldevid"
)

// The other directories below the state directory.
const (
	Pins = "pins" // of the token
	Edge = "edge" // marks of what tpm2cloud-edgecfg has begun
)

// The files of an identity.
const (
	FileCertificate = "certificate.pem"
	FileCA          = "ca.pem"
	FileRequest     = "request.csr"
	FileNext        = "next.pem"
	FileNextCA      = "next-ca.pem"
	FileNextRequest = "next.csr"
	FileKey         = "key.json" // of the IDevID: its blobs
	FileEK          = "ek.json"
	FileEKChain     = "ek.pem"
	FileSRK         = "srk.json" // of the LDevID: which storage root key was made for it
)

// The modes of the files.
const (
	ModePublic  fs.FileMode = 0o644
	ModePrivate fs.FileMode = 0o600
	modeDir     fs.FileMode = 0o755
)

// Dir is the directory of an identity.
func Dir(cfg *config.Config, name string) *store.Dir {
	return store.Open(filepath.Join(cfg.Path(cfg.Run.State), name), modeDir)
}

// ReadChain reads the chain of an identity, which is not judged by that; the
// error is fs.ErrNotExist where there is none.
func ReadChain(dir *store.Dir) (*devid.Chain, error) { return readChain(dir, FileCertificate) }

func readChain(dir *store.Dir, file string) (*devid.Chain, error) {
	data, err := dir.Read(file)
	if err != nil {
		return nil, err
	}
	leaf, intermediates, err := devid.ParseChainPEM(data)
	if err != nil {
		return nil, step.Fail(step.Refused, "cannot use %s: %w", dir.Path(file), err)
	}
	return &devid.Chain{Leaf: leaf, Intermediates: intermediates}, nil
}

// ReadCA reads the CA certificates that were kept at enrolment; the error is
// fs.ErrNotExist where there are none.
func ReadCA(dir *store.Dir) ([]*x509.Certificate, error) { return readCA(dir, FileCA) }

func readCA(dir *store.Dir, file string) ([]*x509.Certificate, error) {
	data, err := dir.Read(file)
	if err != nil {
		return nil, err
	}
	list, err := devid.ParsePEM(data)
	if err != nil {
		return nil, step.Fail(step.Refused, "cannot use %s: %w", dir.Path(file), err)
	}
	return list, nil
}

// Describe is a certificate in the tables and in the status.
func Describe(c *x509.Certificate) *step.Certificate {
	return &step.Certificate{
		CommonName:   c.Subject.CommonName,
		SerialNumber: c.Subject.SerialNumber,
		Issuer:       c.Issuer.String(),
		NotBefore:    c.NotBefore,
		NotAfter:     c.NotAfter,
		SHA256:       devid.Fingerprint(c),
	}
}

// Floors are times that the clock can't be before: what this device enrolled
// with, and the CA certificates that its configuration pins, existed when it
// got them. Of a CA's own list only those in the chain count: some CAs publish
// the next root before it begins.
func Floors(cfg *config.Config) []time.Time {
	files := []string{Dir(cfg, IDevID).Path(FileCertificate), Dir(cfg, LDevID).Path(FileCertificate)}
	for _, pinned := range []string{cfg.IDevID.Enroll.ServerCA, cfg.LDevID.Enroll.ServerCA, cfg.LDevID.IDevIDCA} {
		if filepath.IsAbs(pinned) {
			files = append(files, cfg.Path(pinned))
		}
	}
	var floors []time.Time
	for _, file := range files {
		// What can't be read is reported by whoever needs it.
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		list, err := devid.ParsePEM(data)
		if err != nil {
			continue
		}
		for _, c := range list {
			floors = append(floors, c.NotBefore)
		}
	}
	return floors
}

// Certificates are a chain as one list, leaf first.
func Certificates(chain *devid.Chain) []*x509.Certificate {
	return append([]*x509.Certificate{chain.Leaf}, chain.Intermediates...)
}

// TLS is an identity as a TLS client shows it; the key may be in the TPM.
func TLS(chain *devid.Chain, key crypto.Signer) *tls.Certificate {
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain.Leaf}
	for _, c := range Certificates(chain) {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}
