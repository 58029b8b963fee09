package identity

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/enroll"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// The certificate that is in use stays in its place, untouched, until the next
// one lies beside it and has been proven; a cut in between leaves a device that
// works, and a renewal that goes on from there.

// Due is when a certificate is to be renewed: after two thirds of its life, and
// up to a twelfth of it later. How much is drawn by the certificate's own
// fingerprint: a fleet that was provisioned in one hour is not renewed in one
// hour, and each of its devices says the same date whenever it is asked.
func Due(c *x509.Certificate) time.Time {
	life := c.NotAfter.Unix() - c.NotBefore.Unix() // a time.Duration ends after 292 years
	var drawn int64
	for _, b := range []byte(devid.Fingerprint(c))[:8] {
		drawn = (drawn*31 + int64(b)) % 1024
	}
	return time.Unix(c.NotBefore.Unix()+life/3*2+life/12*drawn/1024, 0).UTC()
}

// Renew gets a certificate in the place of o.Identity, and stages it as the next.
// Its request has a file of its own: beside a certificate that is in use, the
// request of an enrolment is one that was answered.
func Renew(ctx context.Context, o Order) error {
	o.requestFile = FileNextRequest
	result, err := o.place(ctx, (*enroll.Enroller).Renew)
	if err != nil {
		return err
	}
	return o.stage(result, FileNext, FileNextCA)
}

// Next is a renewed certificate that is not in use yet.
type Next struct {
	Chain *devid.Chain
	CA    []*x509.Certificate
}

// ReadNext reads it; the error is fs.ErrNotExist where there is none.
func ReadNext(dir *store.Dir) (*Next, error) {
	chain, err := readChain(dir, FileNext)
	if err != nil {
		return nil, err
	}
	ca, err := readCA(dir, FileNextCA)
	if err != nil {
		return nil, err
	}
	return &Next{chain, ca}, nil
}

// Prove has the certificate, which is o.Identity, serve in a TLS handshake.
func (n *Next) Prove(ctx context.Context, o Order) error {
	method, err := o.enroller()
	if err != nil {
		return err
	}
	return method.Prove(ctx, n.CA)
}

// TakeOver puts the next certificate in the place of the one in use. After a cut
// in between, the CA's certificates may not be those of the certificate; as long
// as the next one is there, it is taken over again.
func (n *Next) TakeOver(dir *store.Dir) error {
	if err := dir.Write(FileCA, devid.EncodePEM(n.CA), ModePublic); err != nil {
		return err
	}
	if err := dir.Write(FileCertificate, n.Chain.PEM(), ModePublic); err != nil {
		return err
	}
	// A cut may have left its request, which is answered.
	if err := dir.Remove(FileNextRequest); err != nil {
		return err
	}
	// The certificate first, which is nothing without the other.
	if err := dir.Remove(FileNext); err != nil {
		return err
	}
	return dir.Remove(FileNextCA)
}
