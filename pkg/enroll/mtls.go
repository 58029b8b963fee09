package enroll

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"io"
	"sync"

	"github.com/tpm2cloud/tpm2cloud/pkg/est"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// issueWithIdentity is the method est-mtls: the device shows the identity that it has already, its IDevID
// (RFC 7030, section 3.3.2). The request is for another key, so it's simpleenroll and no renewal.
func (e *Enroller) issueWithIdentity(ctx context.Context, r Request) (answer, ca []*x509.Certificate, err error) {
	if e.options.Identity == nil {
		return nil, nil, step.Fail(step.Software, "cannot enrol with est-mtls: no identity was given")
	}
	identity := *e.options.Identity
	signer, ok := identity.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, step.Fail(step.Software, "cannot enrol with est-mtls: a key of type %T cannot sign", identity.PrivateKey)
	}
	key := &recorder{Signer: signer}
	identity.PrivateKey = key
	answer, ca, err = e.issueOverEST(ctx, r, est.Options{Certificate: &identity})
	if failure := key.failure(); err != nil && failure != nil {
		return nil, nil, step.As(step.Temporary, "", fmt.Errorf("cannot sign the TLS handshake with the key of the IDevID: %w", failure))
	}
	return answer, ca, err
}

// A recorder keeps the error of a signature: crypto/tls passes on its text only, and the class would be lost
// with which the TPM says whether to try again.
type recorder struct {
	crypto.Signer
	mu  sync.Mutex
	err error
}

func (r *recorder) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := r.Signer.Sign(rand, digest, opts)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	return signature, err
}

func (r *recorder) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}
