package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Options are what the methods need from their surroundings.
type Options struct {
	// Section names the part of the configuration in hints: "idevid.enroll".
	Section string
	// Path puts a path of the configuration below the root; [config.Config.Path].
	Path func(string) string
	// Secret reads a secret; [config.Config.ReadSecret].
	Secret func(config.Secret) (string, error)
	// Identity is shown to the server by est-mtls, where it is the chain of the IDevID and its key in the TPM, and by a
	// renewal, where it is the certificate to be renewed.
	Identity *tls.Certificate
	// Now is when certificates are judged, nil the system's clock. ClockVerified says that it's the
	// right time for sure; else what dates alone forbid is temporary.
	Now           func() time.Time
	ClockVerified bool
}

// Request is what a certificate is asked for with.
type Request struct {
	// CSR is a PKCS#10 request in DER; see [devid.CSR].
	CSR []byte
	// Expect is what the answer must be. Enroll fills in Roots and At, and AnySubject where the
	// configuration allows it.
	Expect devid.Expect
}

// Result is a certificate that was issued and checked.
type Result struct {
	Chain *devid.Chain
	// CA are the certificates of the CA, as it lists them, to check the chain again later.
	CA []*x509.Certificate
}

// An issuer is a method: it hands a request to a CA and returns what it sent, unchecked, and its own certificates.
type issuer func(context.Context, Request) (answer, ca []*x509.Certificate, err error)

// Enroller gets certificates by the method of one configuration.
type Enroller struct {
	enroll  config.Enroll
	options Options
	issue   issuer
}

// New chooses the method. It reads no file and opens no connection.
func New(cfg config.Enroll, o Options) (*Enroller, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Section == "" {
		o.Section = "enroll"
	}
	e := &Enroller{enroll: cfg, options: o}
	switch cfg.Method {
	case config.MethodCA:
		e.issue = e.issueLocally
	case config.MethodSecret:
		e.issue = e.issueWithSecret
	case config.MethodBasic:
		e.issue = e.issueWithPassword
	case config.MethodMTLS:
		e.issue = e.issueWithIdentity
	default:
		return nil, step.Fail(step.Configuration, "cannot enrol: unknown method %q", cfg.Method)
	}
	return e, nil
}

// Enroll makes one attempt to get a certificate. Every error has a class; see the package documentation.
func (e *Enroller) Enroll(ctx context.Context, r Request) (*Result, error) {
	return e.judged(ctx, r, e.issue)
}

// judged has an issuer issue, and looks at what it sent.
func (e *Enroller) judged(ctx context.Context, r Request, issue issuer) (*Result, error) {
	answer, ca, err := issue(ctx, r)
	if err != nil {
		return nil, err
	}
	want := r.Expect
	want.Roots, want.At = ca, e.options.Now()
	want.AnySubject = want.AnySubject || e.enroll.AnySubject
	chain, err := devid.Check(answer, want)
	if err != nil {
		return nil, e.unacceptable(err)
	}
	return &Result{Chain: chain, CA: ca}, nil
}
