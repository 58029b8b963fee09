package check

import (
	"context"
	"fmt"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

const (
	idAgentLDevID  = "agent-ldevid"
	idAgentApplied = "agent-applied"
	unitKeyd       = "aziot-keyd.service"
)

func agentChecks() []Check {
	return []Check{
		{ID: idAgentLDevID, Title: "What the agent is configured with is there: the LDevID certificate, the token's PIN, and a name that the cloud takes.",
			run: ofEdge("ldevid", "names")},
		{ID: "agent-files", Title: "The agent's configuration is as tpm2cloud-edgecfg wrote it, and as it would write it now.",
			needs: []string{idAgentLDevID}, run: ofEdge("files")},
		{ID: idAgentApplied, Title: "The agent's services run with that configuration.", needs: []string{idAgentLDevID}, run: ofEdge("apply")},
		{ID: "agent-key", Title: "The agent's key service has the key that the configuration names.", needs: []string{idAgentApplied}, run: agentKey},
		{ID: "agent-registered", Title: "The agent has registered the device with the cloud, under its name.", needs: []string{idAgentApplied}, run: agentRegistered},
	}
}

func ofEdge(names ...string) func(context.Context, *Subject) finding {
	return func(ctx context.Context, s *Subject) finding { return s.steps(ctx, config.ProgramEdge, names...) }
}

// keydLimit is for a service that runs; the program itself waits longer for one
// that has just been started.
const keydLimit = 5 * time.Second

func agentKey(ctx context.Context, s *Subject) finding {
	ctx, cancel := context.WithTimeout(ctx, keydLimit)
	defer cancel()
	return finding{err: s.Edgecfg.ProveKey(ctx)}
}

func agentRegistered(_ context.Context, s *Subject) finding {
	name, right, err := s.Edgecfg.Registered()
	switch {
	case err != nil:
		return finding{err: err}
	case name == "":
		return warn("journalctl -u aziot-identityd says why; iotedge check looks further", "the agent has not registered it yet")
	case !right:
		return finding{err: step.As(step.Refused, "iotedge system reprovision registers it anew",
			fmt.Errorf("it is registered as %q, and that is not its name", name))}
	}
	return found("%s", name)
}
