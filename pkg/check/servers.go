package check

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/enroll"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

func serverChecks() []Check {
	return []Check{
		{ID: "est-idevid", Title: "The manufacturer's EST server can be reached and is trusted, as long as it is needed.", run: estOf(config.ProgramIDevID)},
		{ID: "est-ldevid", Title: "The owner's EST server can be reached and is trusted.", run: estOf(config.ProgramLDevID)},
		{ID: "est-operational", Title: "The EST server of the agent can be reached, is trusted, and takes the password where there is one.",
			needs: []string{idAgentLDevID}, run: estOperational},
		{ID: "dps", Title: "The Device Provisioning Service can be reached, and is trusted by the system's store as the agent does it.", run: dpsAnswers},
	}
}

// serverLimit bounds one exchange: who waits for a check wants to know.
const serverLimit = 10 * time.Second

func estOf(program config.Program) func(context.Context, *Subject) finding {
	return func(ctx context.Context, s *Subject) finding {
		order, section, certificate := s.Config.IDevID.Enroll, "idevid.enroll", "idevid-certificate"
		if program == config.ProgramLDevID {
			order, section, certificate = s.Config.LDevID.Enroll, "ldevid.enroll", "ldevid-certificate"
		}
		if s.Config.Check(program) != nil {
			return skip("needs %s", idConfig)
		}
		if order.Method == config.MethodCA {
			return skip("method %q has no server", order.Method)
		}
		row, err := s.row(ctx, program, certificate)
		done := err == nil && row.State == step.Present
		if done && program == config.ProgramIDevID {
			return skip("there is a certificate, for good")
		}
		ctx, cancel := context.WithTimeout(ctx, serverLimit)
		defer cancel()
		err = enroll.Probe(ctx, order, enroll.Options{
			Path: s.Config.Path, Secret: s.Config.ReadSecret, Section: section,
			Now: func() time.Time { return s.Clock.Time }, ClockVerified: s.Clock.Verified,
		})
		switch {
		case err != nil && done:
			return warn(step.HintOf(err), "%v; there is a certificate already", err)
		case err != nil:
			return finding{err: err}
		}
		return found("%s", order.Server)
	}
}

func estOperational(ctx context.Context, s *Subject) finding {
	if s.Config.Check(config.ProgramEdge) != nil || s.Edgecfg == nil {
		return skip("needs %s", idConfig)
	}
	if s.Config.Edge.Method == config.EdgeDPS {
		return skip("method %q has no server", s.Config.Edge.Method)
	}
	ctx, cancel := context.WithTimeout(ctx, serverLimit)
	defer cancel()
	if err := s.Edgecfg.Probe(ctx); err != nil {
		return finding{err: err}
	}
	return found("%s", s.Config.Edge.EST.Server)
}

// dpsAnswers makes a request that DPS refuses: that it answers is what is
// proven. The agent trusts it by the system's store, and knows no floor for the
// clock.
func dpsAnswers(ctx context.Context, s *Subject) finding {
	if s.Config.Check(config.ProgramEdge) != nil {
		return skip("needs %s", idConfig)
	}
	endpoint := s.Config.Edge.GlobalEndpoint
	ctx, cancel := context.WithTimeout(ctx, serverLimit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
	if err != nil {
		return finding{err: step.As(step.Configuration, "see [edge] global_endpoint", err)}
	}
	client := http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}}
	answer, err := client.Do(request)
	if untrusted, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return refuse(step.Refused, "the agent trusts it by the system's store of CA certificates (ca-certificates), and by the system's clock",
			"%s is not trusted: %w", endpoint, untrusted.Err)
	}
	if err != nil {
		return finding{err: step.As(step.Temporary, "is there a network, and is [edge] global_endpoint right? Outgoing HTTPS to it must be allowed",
			fmt.Errorf("cannot reach the Device Provisioning Service: %w", err))}
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10)) // what it says does not matter
	return found("%s", endpoint)
}
