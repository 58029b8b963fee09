package check

import (
	"context"
	"fmt"
	"strings"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/systemd"
)

func unitChecks() []Check {
	return []Check{
		{ID: "units", Title: "The three units have ended well, and systemd has read them as they are on the disk.", run: unitsActive},
		{ID: "units-enabled", Title: "The target starts at each boot, and the timers try again what is missing, and renew the LDevID certificate.", run: unitsEnabled},
		{ID: "agent-units", Title: "No unit of the agent has failed.", run: agentUnits},
	}
}

// onThisSystem says whether the subject is what systemd runs, and not a folder.
func (s *Subject) onThisSystem() bool {
	return (s.Config.Root() == "/" || s.Config.Root() == "") && systemd.Running()
}

func unitsActive(ctx context.Context, s *Subject) finding {
	if !s.onThisSystem() {
		return skip("systemd does not run this root")
	}
	var odd finding
	for _, program := range Programs {
		name := string(program) + ".service"
		unit, err := systemd.Show(ctx, name)
		if err != nil {
			return finding{err: err}
		}
		switch {
		case unit["LoadState"] == "not-found":
			odd = warn("install the package tpm2cloud, which has all three", "%s is not installed", name)
		case unit["ActiveState"] == "activating":
			odd = warn("systemctl status "+name, "%s runs: %s", name, unit["StatusText"])
		case unit["ActiveState"] == "failed":
			return refuse(exitClass(unit["ExecMainStatus"]), "journalctl -x -u "+name+" shows cause and remedy", "%s failed with exit code %s: %s", name, unit["ExecMainStatus"], unit["StatusText"])
		case unit["ActiveState"] != "active":
			return refuse(step.Temporary, "systemctl start tpm2cloud.target", "%s is %s: it has not run since the boot", name, unit["ActiveState"])
		case unit["NeedDaemonReload"] == "yes":
			odd = warn("systemctl daemon-reload", "%s was changed on the disk, and systemd has not read it", name)
		}
	}
	return odd
}

// exitClass is the class of a program's exit code.
func exitClass(code string) step.Class {
	var n int
	if _, err := fmt.Sscan(code, &n); err != nil || n == 0 {
		return step.Temporary
	}
	return step.Class(n)
}

const renewTimer = "tpm2cloud-renew.timer"

func unitsEnabled(ctx context.Context, s *Subject) finding {
	if !s.onThisSystem() {
		return skip("systemd does not run this root")
	}
	for _, name := range []string{"tpm2cloud.target", "tpm2cloud-retry.timer", renewTimer} {
		unit, err := systemd.Show(ctx, name)
		if err != nil {
			return finding{err: err}
		}
		switch {
		case name == renewTimer && unit["LoadState"] == "not-found":
			continue // tpm2cloud-ldevid has it
		case unit["UnitFileState"] != "enabled":
			return refuse(step.Unavailable, "systemctl enable "+name, "%s is %s", name, unit["UnitFileState"])
		case unit["ActiveState"] != "active":
			return warn("systemctl start "+name, "%s is %s", name, unit["ActiveState"])
		}
	}
	return finding{}
}

func agentUnits(ctx context.Context, s *Subject) finding {
	if !s.onThisSystem() {
		return skip("systemd does not run this root")
	}
	if s.Edgecfg == nil || !s.Edgecfg.Installed() {
		return skip("the agent is not installed")
	}
	var seen []string
	for _, name := range []string{unitKeyd, "aziot-certd.service", "aziot-identityd.service", "aziot-edged.service"} {
		unit, err := systemd.Show(ctx, name)
		if err != nil {
			return finding{err: err}
		}
		switch {
		case unit["LoadState"] == "not-found":
			continue
		case unit["ActiveState"] == "failed" || unit["SubState"] == "auto-restart":
			return refuse(step.Unavailable, "journalctl -u "+name, "%s does not run: %s, %s", name, unit["ActiveState"], unit["Result"])
		case unit["NeedDaemonReload"] == "yes":
			return warn("systemctl daemon-reload, then systemctl restart "+name, "%s was changed on the disk, and systemd has not read it", name)
		}
		seen = append(seen, fmt.Sprintf("%s is %s", name, unit["ActiveState"]))
	}
	return found("%s", strings.Join(seen, ", "))
}
