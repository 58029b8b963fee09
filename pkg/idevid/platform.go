package idevid

import (
	"context"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/status"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// platform closes what would let somebody undo the identity: after each reset
// the platform hierarchy of a board without TPM firmware support has an empty
// authorisation value, by which the locked index can be removed; and TPM2_Clear
// destroys the keys under the EK. It also sets the counter of failed
// authorisations back, which power cuts drive up and which would lock the keys
// of others out (ours are not subject to it).
type platform struct{ *Program }

func (platform) Name() string { return "platform" }

// hierarchies are how the platform and lockout hierarchies stand.
type hierarchies struct {
	tpm.State
	open bool // anybody can use the platform hierarchy
	// mayReset: the lockout authorisation is empty or configured, and was not
	// refused in this run: a wrong value is tried once.
	mayReset bool
}

func (p *Program) readHierarchies() (h hierarchies, err error) {
	if h.State, err = p.tpm.State(); err != nil {
		return h, err
	}
	h.mayReset = p.resetRefused == nil && (!h.LockoutAuthSet || p.cfg.TPM.LockoutAuth != "")
	if p.cfg.TPM.Platform == config.PlatformClose && h.PlatformEnabled {
		h.open, err = p.tpm.PlatformOpen(p.content.index)
	}
	return h, err
}

// TPM is the TPM as the steps saw it, nil: not yet. Who made it is what the
// vendor's certificate says: the TPM itself would have to be asked.
func (p *Program) TPM() *status.TPM {
	if p.hierarchies.State == (tpm.State{}) {
		return nil
	}
	s := &status.TPM{LockoutCounter: p.hierarchies.LockoutCounter, LockoutMax: p.hierarchies.LockoutMax}
	if v := p.vendor; v != nil && v.entry != nil {
		names := v.entry.Certificate.Names
		s.Vendor, s.Model, s.Firmware = names.Vendor(), names.Model, names.Version
	}
	return s
}

// disabler is the hierarchy by which TPM2_Clear can be disabled, or 0.
func (s platform) disabler() tpm2.TPMHandle {
	switch h := s.hierarchies; {
	case h.open, s.cfg.TPM.PlatformAuth != "":
		return tpm2.TPMRHPlatform
	case h.mayReset:
		return tpm2.TPMRHLockout
	}
	return 0
}

func (s platform) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{Object: "platform hierarchy"}
	if s.content == nil {
		return step.WaitsFor(obs.Object, idevidCertificate{}.Name()), nil
	}
	h, err := s.readHierarchies()
	if err != nil {
		return obs, err
	}
	s.hierarchies = h
	failed := fmt.Sprintf("the TPM counts %d failed authorisations of at most %d", h.LockoutCounter, h.LockoutMax)
	switch {
	case s.resetRefused != nil:
		obs.Warnings = append(obs.Warnings, fmt.Sprintf("%s, and the lockout hierarchy does not serve: %v; is [tpm] lockout_auth right?", failed, s.resetRefused))
	case h.LockoutCounter > 0 && !h.mayReset:
		obs.Warnings = append(obs.Warnings, failed+", and the lockout authorisation that resets them is not configured ([tpm] lockout_auth)")
	}
	switch leave := s.cfg.TPM.Platform == config.PlatformLeave; {
	case h.LockoutCounter > 0 && h.mayReset:
		obs.State, obs.Detail = step.Partial, failed
	case leave:
		obs.State, obs.Detail = step.Present, "left as it is"
		obs.Warnings = append(obs.Warnings, "[tpm] platform = \"leave\": whoever may open the TPM may remove the IDevID certificate")
	case h.open:
		obs.State, obs.Detail = step.Missing, "open"
	case !h.ClearDisabled && s.disabler() != 0:
		obs.State, obs.Detail = step.Partial, "closed, but TPM2_Clear is possible"
	default:
		obs.State, obs.Detail = step.Present, "closed"
		if !h.ClearDisabled {
			obs.Warnings = append(obs.Warnings, "TPM2_Clear is possible for who knows the lockout authorisation; it would destroy the IDevID key")
		}
	}
	return obs, nil
}

// Act closes first: the counter matters to others, and must not keep the
// identity open.
func (s platform) Act(context.Context, step.Observation) error {
	h := s.hierarchies
	if s.cfg.TPM.Platform == config.PlatformClose {
		by := s.disabler()
		if !h.ClearDisabled && by != 0 {
			if err := s.tpm.DisableClear(by); err != nil && by == tpm2.TPMRHPlatform {
				return err
			} else if err != nil {
				s.resetRefused = err
			}
		}
		if h.open {
			if err := s.tpm.ClosePlatform(); err != nil {
				return err
			}
		}
	}
	if h.LockoutCounter > 0 && h.mayReset && s.resetRefused == nil {
		s.resetRefused = s.tpm.ResetLockout()
	}
	return nil
}
