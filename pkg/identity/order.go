package identity

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/enroll"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// Order is a certificate to be got.
type Order struct {
	Config *config.Config
	Enroll config.Enroll
	// Section names Enroll in hints: "idevid.enroll".
	Section string
	Files   *store.Dir
	Clock   func() clock.Clock

	Key     crypto.PublicKey
	Subject pkix.Name
	// Sign makes the request; it is called when none is kept.
	Sign func() ([]byte, error)
	// Identity is what the device shows to an EST server over mutual TLS.
	Identity *tls.Certificate

	ClientAuth bool // the certificate is for a TLS client
	NoExpiry   bool // it should have no end, as an IDevID

	requestFile string
}

// Enrol gets the certificate and stages it. The request is on disk before it
// is sent and is sent again, the same bytes, until a CA has answered it: one
// that wants an operator's consent (202) recognises it by that, and a lost
// answer costs no second key. The CA certificates are written before the
// chain, whose presence says that both are there.
func Enrol(ctx context.Context, o Order) (*devid.Chain, error) {
	o.requestFile = FileRequest
	result, err := o.place(ctx, (*enroll.Enroller).Enroll)
	if err != nil {
		return nil, err
	}
	return result.Chain, o.stage(result, FileCertificate, FileCA)
}

// stage writes what an order brought.
func (o Order) stage(result *enroll.Result, certificate, ca string) error {
	if err := o.Files.Write(ca, devid.EncodePEM(result.CA), ModePublic); err != nil {
		return err
	}
	if err := o.Files.Write(certificate, result.Chain.PEM(), ModePublic); err != nil {
		return err
	}
	return o.Files.Remove(o.requestFile)
}

// enroller is the method of the order.
func (o Order) enroller() (*enroll.Enroller, error) {
	return enroll.New(o.Enroll, enroll.Options{
		Path:          o.Config.Path,
		Secret:        o.Config.ReadSecret,
		Identity:      o.Identity,
		Now:           func() time.Time { return o.Clock().Time },
		Section:       o.Section,
		ClockVerified: o.Clock().Verified,
	})
}

// place sends the request, unless the same was refused not long ago.
func (o Order) place(ctx context.Context, send func(*enroll.Enroller, context.Context, enroll.Request) (*enroll.Result, error)) (*enroll.Result, error) {
	method, err := o.enroller()
	if err != nil {
		return nil, err
	}
	if err := o.allowed(); err != nil {
		return nil, err
	}
	csr, err := o.request()
	if err != nil {
		return nil, err
	}
	result, err := send(method, ctx, enroll.Request{CSR: csr, Expect: devid.Expect{
		Key:        o.Key,
		Subject:    o.Subject,
		AnySubject: o.Enroll.AnySubject,
		ClientAuth: o.ClientAuth,
		NoExpiry:   o.NoExpiry,
		At:         o.Clock().Time,
	}})
	if err := errors.Join(o.since(err), o.remember(err)); err != nil {
		return nil, err
	}
	return result, nil
}

// request is the kept request, if it is for this key and name, or a new one.
func (o Order) request() ([]byte, error) {
	kept, err := o.Files.Read(o.requestFile)
	if err == nil && devid.SameCSR(kept, o.Key, o.Subject) {
		return kept, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	csr, err := o.Sign()
	if err != nil {
		return nil, err
	}
	return csr, o.Files.Write(o.requestFile, csr, ModePublic)
}

// Check judges a kept chain by the same rules as one that a CA sends.
func Check(chain *devid.Chain, want devid.Expect) (*devid.Chain, error) {
	return devid.Check(Certificates(chain), want)
}

// Undecided says whether it is the dates alone that speak against a certificate,
// by a clock that may be wrong: it calls no certificate bad.
func Undecided(err error, now clock.Clock) bool {
	var dates *devid.DateError
	return errors.As(err, &dates) && !now.Verified
}

// Ready finds out whether an order could be placed: the secret and the files
// that its method needs are there. Who asks before the first change of the TPM
// has changed nothing when they aren't. Where there is a certificate on the disk
// already none is to be ordered, and the secret may have been wiped.
func Ready(cfg *config.Config, e config.Enroll, dir *store.Dir) error {
	if dir.Has(FileCertificate) {
		return nil
	}
	var files []string
	if e.Method == config.MethodCA {
		files = []string{e.CACertificate, e.CAKey}
	}
	if e.Method != config.MethodCA && e.ServerCA != config.SystemCA {
		files = append(files, e.ServerCA)
	}
	if secret := secretOf(e); secret != "" {
		if _, err := cfg.ReadSecret(secret); err != nil {
			return err
		}
	}
	for _, file := range files {
		if _, err := os.Stat(cfg.Path(file)); err != nil {
			return step.As(step.Configuration, "the configuration names the file", fmt.Errorf("cannot enrol by %s: %w", e.Method, err))
		}
	}
	return nil
}

// HasSecret says whether the secret that the method needs is there, if it needs one.
func HasSecret(cfg *config.Config, e config.Enroll) bool {
	secret := secretOf(e)
	if secret == "" {
		return true
	}
	_, err := cfg.ReadSecret(secret)
	return err == nil
}

// secretOf names the secret that a method needs, or "".
func secretOf(e config.Enroll) config.Secret {
	if e.Method == config.MethodCA {
		return "" // a file that is read as such
	}
	_, named := e.SecretKey()
	return named
}
