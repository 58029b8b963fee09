package enroll

import (
	"context"
	"crypto"
	"crypto/tls"
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
	identity, key, err := e.recorded()
	if err != nil {
		return nil, nil, err
	}
	answer, ca, err = e.issueOverEST(ctx, r, est.Options{Certificate: identity})
	if err != nil {
		return nil, nil, key.told(err)
	}
	return answer, ca, nil
}

// recorded is the identity that is to be shown, with a record of what its key does.
func (e *Enroller) recorded() (*tls.Certificate, *recorder, error) {
	if e.options.Identity == nil {
		return nil, nil, step.Fail(step.Software, "cannot show a certificate to the EST server: none was given")
	}
	identity := *e.options.Identity
	signer, ok := identity.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, step.Fail(step.Software, "cannot show a certificate to the EST server: a key of type %T cannot sign", identity.PrivateKey)
	}
	key := &recorder{Signer: signer}
	identity.PrivateKey = key
	return &identity, key, nil
}

// A recorder keeps the error of a signature: crypto/tls passes on its text only, and the class would be lost
// with which the TPM says whether to try again.
type recorder struct {
	crypto.Signer
	mu    sync.Mutex
	asked bool
	err   error
}

func (r *recorder) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := r.Signer.Sign(rand, digest, opts)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked, r.err = true, err
	return signature, err
}

// told is the error of an exchange, or of the signature that it failed by.
func (r *recorder) told(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return step.As(step.Temporary, "", fmt.Errorf("cannot sign the TLS handshake with the device's key: %w", r.err))
	}
	return err
}

// hasSigned says whether the server asked for the certificate, and got the proof of its key.
func (r *recorder) hasSigned() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked && r.err == nil
}
