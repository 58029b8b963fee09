package edgecfg

import (
	"context"
	"fmt"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// namesStep looks whether the device can have the name that it is to have at
// DPS. A wrong one would only show as "401 Unauthorized" in identityd's log.
type namesStep struct{ p *Program }

func (s *namesStep) Name() string { return "names" }

func (s *namesStep) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{Object: "device id"}
	id, err := s.p.readLDevID()
	if err != nil {
		return obs, err
	}
	name, err := s.p.deviceID(id)
	if err != nil {
		return obs, err
	}
	obs.State, obs.Detail = step.Present, name
	return obs, nil
}

// Act is never called: a name is good, or an error.
func (s *namesStep) Act(context.Context, step.Observation) error {
	return step.Fail(step.Software, "cannot make a device id")
}

// deviceID is the device's name at DPS and at the hub: the configured one, else
// the LDevID's common name.
func (p *Program) deviceID(id *ldevid) (string, error) {
	cn := id.leaf.Subject.CommonName
	name := p.cfg.Edge.DeviceID
	if name == "" {
		if err := devid.DPSName(cn); err != nil {
			return "", step.As(step.Refused, `set [ldevid] common_name to a name of a-z, 0-9, ".", "_" and "-" and enrol again, or give the device a name of its own in [edge] device_id (not with method "dps")`,
				fmt.Errorf("cannot register the device under the LDevID's common name: %w", err))
		}
		return cn, nil
	}
	// DPS compares the registration id with the certificate that is shown, and
	// case counts. Of an EST method that is the operational one, which is
	// requested with this name; of "dps" it is the LDevID.
	if p.cfg.Edge.Method == config.EdgeDPS && name != cn {
		return "", step.As(step.Configuration, `leave [edge] device_id out, or choose a method that requests a certificate with that name ("est-ba", "est-mtls")`,
			fmt.Errorf("cannot register the device as %q: the LDevID's common name is %q, and with method %q they must be the same byte for byte", name, cn, string(config.EdgeDPS)))
	}
	return name, nil
}
