package edgecfg

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/est"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// ready looks for what would make the agent destroy something if it were
// configured now. identityd that cannot get its operational certificate,
// for whatever reason, deletes the key and makes another one in the TPM at each
// of its restarts, and these follow every five seconds.
func (p *Program) ready(ctx context.Context, w *wanted) error {
	// The agent judges by the system's clock and knows no floor.
	if err := w.ldevid.validAt(p.opts.SystemTime()); err != nil {
		return step.As(step.Temporary, "set the clock, or let it be synchronised",
			fmt.Errorf("cannot configure the agent before the clock is right: %w", err))
	}
	if w.super.est == nil {
		return nil
	}
	return p.probe(ctx, w)
}

// Probe looks for what would keep this program from configuring the agent now:
// the system's clock, and the EST server that the agent is to use.
func (p *Program) Probe(ctx context.Context) error {
	w, err := p.want()
	if err != nil {
		return err
	}
	return p.ready(ctx, w)
}

// probe fetches /cacerts as certd will do at its first request, with the same
// trust and password, but without the client certificate, whose key only keyd
// can use.
func (p *Program) probe(ctx context.Context, w *wanted) error {
	edge := p.cfg.Edge.EST
	o := est.Options{
		Server: edge.Server, Label: edge.Label,
		Username: edge.Username, Password: w.in.password,
		Proxy:     http.ProxyFromEnvironment,
		Time:      p.opts.SystemTime,
		UserAgent: "tpm2cloud-edgecfg",
	}
	var roots []*x509.Certificate
	if edge.ServerCA != config.SystemCA {
		var err error
		if roots, err = p.readServerCA(); err != nil {
			return err
		}
		o.Roots = x509.NewCertPool()
		for _, c := range roots {
			o.Roots.AddCert(c)
		}
	}
	client, err := est.New(o)
	if err != nil {
		return step.As(step.Configuration, "see [edge.est]", err)
	}
	defer client.Close()
	_, err = client.CACerts(ctx)
	return p.judgeProbe(w, roots, err)
}

// judgeProbe says what the answer to the probe means.
func (p *Program) judgeProbe(w *wanted, roots []*x509.Certificate, err error) error {
	if err == nil {
		return nil
	}
	unsafe := fmt.Errorf("cannot configure the agent for an EST server that it could not use: %w", err)
	if untrusted, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return p.judgeServer(untrusted, roots, unsafe)
	}
	// A server that wants a client certificate says so by an alert, and after
	// its own certificate was found good.
	withCertificate := w.super.est.identity != nil
	if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == "remote error" && withCertificate {
		return nil
	}
	answer, ok := errors.AsType[*est.Error](err)
	if !ok || answer.Status == 0 {
		return step.As(step.Temporary, "is there a network, and is [edge.est] server right?", unsafe)
	}
	switch status := answer.Status; {
	case status == http.StatusOK:
		return step.As(step.Refused, "look whether [edge.est] server is an EST server", unsafe)
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		if withCertificate {
			return nil
		}
		return step.As(step.ServerRefused, "see [edge.est] username and password", unsafe)
	case status == http.StatusAccepted, status == http.StatusTooManyRequests, status >= 500:
		return &step.Error{Class: step.Temporary, Busy: true, NotBefore: answer.RetryAfter, Err: unsafe}
	}
	return step.As(step.ServerRefused, "see [edge.est] server and label", unsafe)
}

// judgeServer says what a certificate of the server that was not accepted means.
func (p *Program) judgeServer(untrusted *tls.CertificateVerificationError, roots []*x509.Certificate, unsafe error) error {
	if now := p.opts.Clock(); !now.Verified && datesAlone(untrusted, roots) {
		return step.As(step.Temporary, "the clock is not set: "+now.Why, unsafe)
	}
	return step.As(step.Refused, "[edge.est] server_ca must be the CA of the server's certificate, and server must be a name in it", unsafe)
}

// datesAlone says whether the server's certificate may be good at another time.
// Of an expired CA crypto/x509 says that the authority is unknown; pkg/devid
// looks closer, but cannot see into the system's store.
func datesAlone(untrusted *tls.CertificateVerificationError, roots []*x509.Certificate) bool {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](untrusted); ok && invalid.Reason == x509.Expired {
		return true
	}
	chain := untrusted.UnverifiedCertificates
	if len(chain) == 0 || len(roots) == 0 {
		return false
	}
	_, err := devid.Verify(chain[0], chain[1:], roots, time.Unix(0, 0))
	_, dates := errors.AsType[*devid.DateError](err)
	return dates
}

// readServerCA reads the CA certificates that [edge.est] names.
func (p *Program) readServerCA() ([]*x509.Certificate, error) {
	path := p.cfg.Path(p.cfg.Edge.EST.ServerCA)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, step.As(step.Configuration, "see [edge.est] server_ca", fmt.Errorf("cannot read the CA of the EST server: %w", err))
	}
	certs, err := devid.ParsePEM(data)
	if err != nil {
		return nil, step.As(step.Configuration, "see [edge.est] server_ca", fmt.Errorf("cannot use the CA of the EST server in %s: %w", path, err))
	}
	return certs, nil
}
