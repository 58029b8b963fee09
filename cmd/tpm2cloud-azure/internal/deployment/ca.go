package deployment

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/ca"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// operationalCA is the first step, so that what is wrong with the CA is found before anything is made that costs money.
type operationalCA struct{ *Deployment }

func (s *operationalCA) Name() string { return "operational-ca" }

// soon is when a CA that expires is worth a warning.
const soon = 30 * 24 * time.Hour

func (s *operationalCA) Observe(ctx context.Context) (step.Observation, error) {
	o := step.Observation{Object: s.EST}
	var certs []*x509.Certificate
	var err error
	if s.CA != "" {
		o.Object = s.CA
		certs, err = ca.Read(s.CA)
	} else {
		certs, err = ca.EST(ctx, s.EST, s.Label, s.ServerCA)
	}
	if err != nil {
		return o, err
	}
	now := time.Now()
	if s.ca, err = ca.Issuing(certs, now); err != nil {
		return o, err
	}
	o.State, o.Detail, o.Certificate = step.Present, fmt.Sprintf("%s, until %s", ca.Name(s.ca), s.ca.NotAfter.UTC().Format(time.DateOnly)), describe(s.ca)
	if left := s.ca.NotAfter.Sub(now); left < soon {
		o.Warnings = append(o.Warnings, fmt.Sprintf("%s expires in %d days, and every certificate that it has issued with it", ca.Name(s.ca), int(left.Hours()/24)))
	}
	return o, nil
}

// Act has nothing to do: without a CA Observe fails.
func (s *operationalCA) Act(context.Context, step.Observation) error {
	return step.Fail(step.Software, "the operational CA is nothing that this program can make")
}
