package enroll

import (
	"context"
	"crypto/x509"
	"fmt"

	"github.com/tpm2cloud/tpm2cloud/pkg/est"
)

// issueWithPassword is the method est-ba: HTTP Basic authentication (RFC 7030, section 3.2.3).
func (e *Enroller) issueWithPassword(ctx context.Context, r Request) (answer, ca []*x509.Certificate, err error) {
	password, err := e.options.Secret(e.enroll.Password)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the password of the EST server: %w", err)
	}
	return e.issueOverEST(ctx, r, est.Options{Username: e.enroll.Username, Password: password})
}
