package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/est"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Renew makes one attempt to get another certificate in the place of Options.Identity, which is the only credential
// that a server gets to see, whatever the method: by RFC 7030, section 4.2.2, the certificate that still holds is
// what entitles to the next, and a password of the first day may be long gone. The request must carry its name.
func (e *Enroller) Renew(ctx context.Context, r Request) (*Result, error) {
	if e.enroll.Method == config.MethodCA {
		return e.judged(ctx, r, e.issueLocally)
	}
	return e.judged(ctx, r, e.reissue)
}

func (e *Enroller) reissue(ctx context.Context, r Request) (answer, ca []*x509.Certificate, err error) {
	identity, key, err := e.recorded()
	if err != nil {
		return nil, nil, err
	}
	err = e.talk(est.Options{Certificate: identity}, func(c *est.Client) error {
		if ca, err = c.CACerts(ctx); err == nil {
			answer, err = c.SimpleReenroll(ctx, r.CSR)
		}
		return err
	})
	if err != nil {
		return nil, nil, key.told(err)
	}
	return answer, ca, nil
}

// Prove has Options.Identity serve once, as the agent will use it: in a TLS handshake with the EST server, which must
// ask for it and answer a request afterwards; in TLS 1.3 that is when a client knows that it was accepted. Without a
// server, in a handshake with ourselves, judged by the CA's certificates.
func (e *Enroller) Prove(ctx context.Context, ca []*x509.Certificate) error {
	identity, key, err := e.recorded()
	if err != nil {
		return err
	}
	if e.enroll.Method == config.MethodCA {
		if err := e.handshake(ctx, identity, ca); err != nil {
			return key.told(step.As(step.Refused, "", fmt.Errorf("cannot use the new certificate in TLS: %w", err)))
		}
		return nil
	}
	err = e.talk(est.Options{Certificate: identity}, func(c *est.Client) error {
		_, err := c.CACerts(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot use the new certificate: %w", key.told(err))
	}
	if !key.hasSigned() {
		return step.As(step.ServerRefused, e.hint("the EST server must ask its clients for a certificate (optional client authentication)"),
			errors.New("cannot prove the new certificate: the server did not ask for it"))
	}
	return nil
}

// handshake is a TLS handshake over a pipe.
func (e *Enroller) handshake(ctx context.Context, identity *tls.Certificate, ca []*x509.Certificate) error {
	anchors, _ := devid.Anchors(ca)
	// The server shows the same certificate: who it is is of no matter here.
	server := &tls.Config{
		Certificates: []tls.Certificate{*identity},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool(anchors),
		Time:         e.options.Now,
		// Nobody reads one.
		SessionTicketsDisabled: true,
	}
	client := &tls.Config{
		// Shown whatever CAs the server names.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return identity, nil },
		Time:                 e.options.Now,
		//nolint:gosec // the server is this process
		InsecureSkipVerify: true,
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	answered := make(chan error, 1)
	go func() {
		defer near.Close()
		conn := tls.Client(near, client)
		err := conn.HandshakeContext(ctx)
		if err == nil {
			_, err = conn.Read(make([]byte, 1)) // in TLS 1.3 the server's verdict comes after the client's handshake
		}
		answered <- err
	}()
	conn := tls.Server(far, server)
	err := conn.HandshakeContext(ctx)
	if err == nil {
		_, err = conn.Write([]byte{0})
	}
	if err != nil {
		far.Close()
		<-answered
		return err
	}
	return <-answered
}
