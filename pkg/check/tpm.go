package check

import (
	"context"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

const idTPM = "tpm"

func tpmChecks() []Check {
	return []Check{
		{ID: idTPM, Title: "The TPM answers, and says who made it.", run: tpmAnswers},
		{ID: "tpm-lockout", Title: "The TPM counts no failed authorisation.", needs: []string{idTPM}, run: tpmLockout},
		{ID: "tpm-room", Title: "There is room for one more persistent key in the TPM.", needs: []string{idTPM}, run: tpmRoom},
		{ID: "ek", Title: "The TPM is genuine: its EK certificate leads to a vendor that is trusted, and it has the key.", needs: []string{idTPM}, run: genuine},
		{ID: "platform", Title: "The platform hierarchy is closed, and TPM2_Clear disabled.", needs: []string{idTPM}, run: platformClosed},
	}
}

func tpmAnswers(_ context.Context, s *Subject) finding {
	who, err := s.DescribeTPM()
	if err != nil {
		return finding{err: err}
	}
	return found("%s", who)
}

func tpmLockout(_ context.Context, s *Subject) finding {
	state, err := s.TPM.State()
	switch {
	case err != nil:
		return finding{err: err}
	case state.LockoutMax > 0 && state.LockoutCounter >= state.LockoutMax:
		return refuse(step.Unavailable, "it ends by itself after a while (tpm2_getcap properties-variable), or at the next boot where [tpm] lockout_auth is known",
			"the TPM is locked: it counts %d failed authorisations", state.LockoutCounter)
	case state.LockoutCounter > 0:
		return warn("tpm2cloud-idevid sets the counter back at the next boot where it may; somebody tried a wrong value, or the power was cut",
			"it counts %d of %d", state.LockoutCounter, state.LockoutMax)
	}
	return finding{}
}

func tpmRoom(_ context.Context, s *Subject) finding {
	state, err := s.TPM.State()
	if err != nil {
		return finding{err: err}
	}
	if state.RoomForKeys == 0 {
		return warn("tpm2_getcap handles-persistent and handles-nv-index show what takes the memory", "there is none")
	}
	return found("for %d at least", state.RoomForKeys)
}

func genuine(ctx context.Context, s *Subject) finding {
	return s.steps(ctx, config.ProgramIDevID, "ek-key", "state", "ek-certificate")
}

func platformClosed(ctx context.Context, s *Subject) finding {
	return s.step(ctx, config.ProgramIDevID, "platform")
}
