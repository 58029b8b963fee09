package check

import (
	"context"
	"errors"
	"fmt"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/reset"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

const idConfig = "config"

func configChecks() []Check {
	return []Check{
		{ID: idConfig, Title: "The configuration can be read, and has what each program needs.", run: configuration},
		{ID: "credentials", Title: "The secrets and files that the configuration names can be read.", run: credentials},
		{ID: "clock", Title: "The clock is synchronised, or at least not absurd.", run: clockStands},
		{ID: "reset", Title: "No reset is half done.", run: noReset},
	}
}

func configuration(_ context.Context, s *Subject) finding {
	var problems []error
	for _, program := range Programs {
		if err := s.Config.Check(program); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", program, err))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return finding{err: step.As(step.Configuration, "tpm2cloud.toml(5) has every key", err)}
	}
	return finding{}
}

// credentials: what an enrolment that is over would have needed is missed by
// nobody, and may have been wiped.
func credentials(_ context.Context, s *Subject) finding {
	for name, enroll := range map[string]config.Enroll{
		identity.IDevID: s.Config.IDevID.Enroll, identity.LDevID: s.Config.LDevID.Enroll,
	} {
		if err := identity.Ready(s.Config, enroll, identity.Dir(s.Config, name)); err != nil {
			return finding{err: err}
		}
	}
	if edge := s.Config.Edge; edge.Method != config.EdgeDPS && edge.EST.Username != "" {
		if _, err := s.Config.ReadSecret(edge.EST.Password); err != nil {
			return finding{err: err}
		}
	}
	return finding{}
}

func clockStands(_ context.Context, s *Subject) finding {
	if err := s.Clock.Err(); err != nil {
		return finding{err: err}
	}
	if !s.Clock.Verified {
		return warn("timedatectl shows how the clock stands; certificates are not called bad for their dates alone until it is set", "%s", s.Clock.Why)
	}
	return finding{}
}

func noReset(_ context.Context, s *Subject) finding {
	state := store.Open(s.Config.Path(s.Config.Run.State), 0o755)
	defer state.Close()
	return finding{err: reset.Allow(state, false)}
}
