package check

import (
	"context"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/device"
	"github.com/tpm2cloud/tpm2cloud/pkg/edgecfg"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/idevid"
	"github.com/tpm2cloud/tpm2cloud/pkg/ldevid"
	"github.com/tpm2cloud/tpm2cloud/pkg/status"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// Subject is the device that is looked at: all three programs, on one TPM. What
// stands in the way of one does not keep the others from being looked at.
type Subject struct {
	Config *config.Config
	TPM    *tpm.TPM // nil: TPMErr says why
	TPMErr error
	Clock  clock.Clock

	IDevID  *idevid.Program  // nil without a TPM
	LDevID  *ldevid.Program  // nil without a TPM
	Edgecfg *edgecfg.Program // nil: edgeErr says why
	edgeErr error

	looked map[config.Program]Look
}

// Look is what was seen of a program.
type Look struct {
	Rows []step.Row
	Err  error // why it could not be looked at
}

// Programs are the programs, in their order.
var Programs = []config.Program{config.ProgramIDevID, config.ProgramLDevID, config.ProgramEdge}

// Open makes the device ready to be looked at.
func Open(cfg *config.Config) *Subject {
	floors := identity.Floors(cfg)
	now := func() clock.Clock { return clock.Read(floors...) }
	s := &Subject{Config: cfg, Clock: now(), looked: map[config.Program]Look{}}
	if s.TPM, s.TPMErr = identity.OpenTPM(cfg); s.TPMErr == nil {
		board := device.New(cfg.Root(), cfg.Device)
		s.IDevID = idevid.New(cfg, s.TPM, board, now)
		s.LDevID = ldevid.New(cfg, s.TPM, board, now)
	}
	s.Edgecfg, s.edgeErr = edgecfg.New(cfg, edgecfg.Options{})
	return s
}

// Close closes the TPM.
func (s *Subject) Close() error {
	if s.TPM == nil {
		return nil
	}
	return s.TPM.Close()
}

// DescribeTPM is the TPM as it says itself, nil where it does not.
func (s *Subject) DescribeTPM() (*status.TPM, error) {
	if s.TPM == nil {
		return nil, s.TPMErr
	}
	who, err := s.TPM.Make()
	if err != nil {
		return nil, err
	}
	state, err := s.TPM.State()
	if err != nil {
		return nil, err
	}
	return &status.TPM{Vendor: who.Vendor, Model: who.Model, Firmware: who.Firmware,
		LockoutCounter: state.LockoutCounter, LockoutMax: state.LockoutMax}, nil
}

// Look looks at the steps of a program, once.
func (s *Subject) Look(ctx context.Context, program config.Program) Look {
	look, ok := s.looked[program]
	if !ok {
		look = s.look(ctx, program)
		s.looked[program] = look
	}
	return look
}

func (s *Subject) look(ctx context.Context, program config.Program) Look {
	if err := s.Config.Check(program); err != nil {
		return Look{Err: err}
	}
	var steps []step.Step
	switch program {
	case config.ProgramEdge:
		if s.edgeErr != nil {
			return Look{Err: s.edgeErr}
		}
		steps = s.Edgecfg.Steps()
	default:
		if s.TPMErr != nil {
			return Look{Err: s.TPMErr}
		}
		steps = s.IDevID.Steps()
		if program == config.ProgramLDevID {
			steps = s.LDevID.Steps()
		}
	}
	return Look{Rows: step.Observe(ctx, steps)}
}
