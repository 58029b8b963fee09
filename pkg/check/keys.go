package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
	"github.com/tpm2cloud/tpm2cloud/pkg/systemd"
)

const (
	idLDevIDKey  = "ldevid-key"
	idLDevIDSign = "ldevid-sign"
)

func keyChecks() []Check {
	return []Check{
		{ID: "idevid-key", Title: "The IDevID key is under the EK, and signs.", needs: []string{idTPM}, run: idevidSigns},
		{ID: "idevid-certificate", Title: "The IDevID certificate is locked in the TPM, for that key, by the manufacturer's CA, with the name that is expected.",
			needs: []string{idTPM}, run: idevidVerified},
		{ID: "srk", Title: "There is a storage root key that others can be made under.", needs: []string{idTPM}, run: ofLDevID("srk")},
		{ID: "token", Title: "The PIN on the disk opens the PKCS#11 token.", needs: []string{idTPM}, run: ofLDevID("token")},
		{ID: idLDevIDKey, Title: "The LDevID key in the TPM is the one in the token.", needs: []string{idTPM}, run: ofLDevID("ldevid-key")},
		{ID: "ldevid-certificate", Title: "The LDevID certificate is for that key, by the owner's CA, with the configured name, and valid.",
			needs: []string{idTPM}, run: ofLDevID("ldevid-certificate")},
		{ID: idLDevIDSign, Title: "The LDevID signs through PKCS#11, as the user of the units.", needs: []string{idLDevIDKey}, run: ldevidSigns},
		{ID: "keyd-sign", Title: "The LDevID signs through PKCS#11, as the user of aziot-keyd with the environment of its unit.",
			needs: []string{idLDevIDKey}, run: keydSigns},
	}
}

func idevidSigns(ctx context.Context, s *Subject) finding {
	f := s.step(ctx, config.ProgramIDevID, "idevid-key")
	if f.err != nil || f.skipped != "" {
		return f
	}
	chain, err := identity.ReadIDevID(s.TPM, identity.Dir(s.Config, identity.IDevID))
	if err == nil {
		_, err = identity.ProveIDevID(s.TPM, chain.Leaf)
	}
	if err != nil {
		return finding{err: err}
	}
	return f
}

func idevidVerified(ctx context.Context, s *Subject) finding {
	f := s.step(ctx, config.ProgramIDevID, "idevid-certificate")
	if f.err != nil || f.skipped != "" {
		return f
	}
	good, err := s.IDevID.Verify("", "")
	if err != nil {
		return finding{err: err}
	}
	if f.warning == "" {
		f.detail = fmt.Sprintf("%s, by %s", good.Certificate.Subject, good.Certificate.Issuer)
	}
	return f
}

func ofLDevID(name string) func(context.Context, *Subject) finding {
	return func(ctx context.Context, s *Subject) finding { return s.step(ctx, config.ProgramLDevID, name) }
}

// ldevidSigns has the owner of the token's store sign: as root, the library
// could do what nobody else can.
func ldevidSigns(ctx context.Context, s *Subject) finding {
	dir := s.Config.Path(s.Config.LDevID.Token.Store)
	info, err := os.Stat(dir)
	if err != nil {
		return finding{err: err}
	}
	owner := info.Sys().(*syscall.Stat_t)
	who, err := userOf(int(owner.Uid), int(owner.Gid))
	if err != nil {
		return finding{err: err}
	}
	return s.signs(ctx, who, []string{"TPM2_PKCS11_STORE=" + dir, "TPM2_PKCS11_TCTI=" + s.Config.TCTI()})
}

// keydSigns asks systemd what the unit of aziot-keyd is like: other drop-ins
// than ours, and one that systemd has not read yet, show there.
func keydSigns(ctx context.Context, s *Subject) finding {
	if !s.onThisSystem() {
		return skip("systemd does not run this root")
	}
	unit, err := systemd.Show(ctx, unitKeyd)
	if err != nil {
		return finding{err: err}
	}
	if unit["LoadState"] == "not-found" {
		return skip("the agent is not installed")
	}
	who, err := userNamed(unit["User"], strings.Fields(unit["SupplementaryGroups"]))
	if err != nil {
		return finding{err: err}
	}
	env := assignments(unit["Environment"])
	if !strings.Contains("\n"+strings.Join(env, "\n"), "\nTPM2_PKCS11_STORE=") {
		return refuse(step.Unavailable, "tpm2cloud-edgecfg writes a drop-in for it: systemctl restart tpm2cloud-edgecfg; if it is there, systemctl daemon-reload, then systemctl restart "+unitKeyd,
			"the unit %s does not say where the token is: its environment has no TPM2_PKCS11_STORE", unitKeyd)
	}
	return s.signs(ctx, who, env)
}

// signs has a user sign with the LDevID, and verifies that with the certificate.
func (s *Subject) signs(ctx context.Context, who *account, env []string) finding {
	if os.Geteuid() != 0 && who.uid != os.Geteuid() {
		return skip("only root can do that as user %s", who.name)
	}
	module, ok := s.Config.Module()
	if !ok {
		return refuse(step.Unavailable, "install libtpm2-pkcs11-1, or name the library in [ldevid.token] module", "there is no PKCS#11 module %s", module)
	}
	pins := store.Open(s.Config.Path(s.Config.Run.State+"/"+identity.Pins), 0o700)
	defer pins.Close()
	pin, err := pins.Read("user-pin")
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			err = step.As(step.Permission, "", err)
		}
		return finding{err: err}
	}
	chain, err := identity.ReadChain(identity.Dir(s.Config, identity.LDevID))
	if err != nil {
		return finding{err: err}
	}
	// The library may need all of a small TPM's slots.
	if err := s.TPM.EndSession(); err != nil {
		return finding{err: err}
	}
	err = signAs(ctx, who, env, request{Module: module, Label: s.Config.LDevID.Token.Label, Key: s.Config.LDevID.Token.Key, PIN: string(pin)}, chain.Leaf.PublicKey)
	if err != nil {
		return refuse(step.Unavailable, fmt.Sprintf("can user %s open the TPM (group tss) and write in the token's store (group tpm2cloud-token)? systemctl restart tpm2cloud-ldevid puts modes right", who.name),
			"user %s cannot sign with key %q of token %q: %w", who.name, s.Config.LDevID.Token.Key, s.Config.LDevID.Token.Label, err)
	}
	return found("user %s", who.name)
}
