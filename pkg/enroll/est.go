package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/est"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// issueOverEST is what the est methods have in common; o holds the credentials, in which they differ.
func (e *Enroller) issueOverEST(ctx context.Context, r Request, o est.Options) (answer, ca []*x509.Certificate, err error) {
	err = e.talk(o, func(c *est.Client) error {
		if ca, err = c.CACerts(ctx); err == nil {
			answer, err = c.SimpleEnroll(ctx, r.CSR)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return answer, ca, nil
}

// talk does something with the server; o holds the credentials.
func (e *Enroller) talk(o est.Options, do func(*est.Client) error) error {
	o.Server, o.Label = e.enroll.Server, e.enroll.Label
	o.Time = e.options.Now
	roots, err := e.serverRoots()
	if err != nil {
		return err
	}
	o.Roots = pool(roots)
	if o.Proxy, err = e.proxy(); err != nil {
		return err
	}
	client, err := est.New(o)
	if err != nil {
		return step.As(step.Configuration, e.hint("check server and label"), err)
	}
	defer client.Close()
	if err := do(client); err != nil {
		return e.failed(err, roots)
	}
	return nil
}

// Probe finds out whether an EST server can be reached and is trusted. It shows no credential, so that one that is
// wrong does not count as tried once more; a server that wants one is an EST server all the same. It makes no Enroller
// for others, so that who only probes does not link the methods.
func Probe(ctx context.Context, cfg config.Enroll, o Options) error {
	if cfg.Method == config.MethodCA {
		return nil
	}
	e := &Enroller{enroll: cfg, options: o}
	return e.talk(est.Options{}, func(c *est.Client) error {
		_, err := c.CACerts(ctx)
		if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == "remote error" {
			return nil // it was verified, and wants a client's certificate
		}
		if answer, ok := errors.AsType[*est.Error](err); ok && (answer.Status == http.StatusUnauthorized || answer.Status == http.StatusForbidden) {
			return nil
		}
		return err
	})
}

// serverRoots are the CAs by which the EST server is verified; nil is the system's store.
func (e *Enroller) serverRoots() ([]*x509.Certificate, error) {
	if e.enroll.ServerCA == config.SystemCA {
		return nil, nil
	}
	certs, err := e.readCertificates(e.enroll.ServerCA)
	if err != nil {
		return nil, badFile(e.hint("server_ca must be %q or a PEM file with the CA of the EST server", config.SystemCA), err)
	}
	return certs, nil
}

// pool makes certificates trusted, all of them: whoever names a file trusts what is in it, an issuing CA without its
// root as well. None at all is the system's store.
func pool(certs []*x509.Certificate) *x509.CertPool {
	if certs == nil {
		return nil
	}
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

func (e *Enroller) proxy() (func(*http.Request) (*url.URL, error), error) {
	if e.enroll.Proxy == "" {
		return environmentProxy, nil
	}
	address, err := url.Parse(e.enroll.Proxy)
	if err == nil && (address.Scheme != "http" && address.Scheme != "https" || address.Hostname() == "") {
		err = errors.New("no http or https URL")
	}
	if err != nil {
		return nil, step.As(step.Configuration, e.hint(`proxy must be like "http://proxy.example.com:3128"`), errProxy)
	}
	return http.ProxyURL(address), nil
}

// errProxy repeats neither the URL nor what a parser says of it: there may be a password in it.
var errProxy = errors.New("cannot use the proxy: its URL is not valid")

func environmentProxy(r *http.Request) (*url.URL, error) {
	address, err := http.ProxyFromEnvironment(r)
	if err != nil {
		return nil, step.As(step.Configuration, "check HTTPS_PROXY in the environment", errProxy)
	}
	return address, nil
}
