package enroll

import (
	"context"
	"crypto/x509"
	"fmt"

	"github.com/tpm2cloud/tpm2cloud/pkg/est"
)

// issueWithSecret is the method est-secret: a secret that the server's operator shares with the devices, in the
// header Secret-Value. It's no part of RFC 7030.
func (e *Enroller) issueWithSecret(ctx context.Context, r Request) (answer, ca []*x509.Certificate, err error) {
	secret, err := e.options.Secret(e.enroll.Secret)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the secret of the EST server: %w", err)
	}
	return e.issueOverEST(ctx, r, est.Options{Secret: secret})
}
