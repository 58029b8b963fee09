package cmd

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/device"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/fault"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// runWith is one run with authorisation values, whose end counts.
func (b *board) runWith(t *testing.T, p program, bus transport.TPM, secrets tpm.Secrets) error {
	t.Helper()
	opened := tpm.New(bus, secrets)
	runner := step.Runner{Steps: p.steps(b.cfg, opened, device.New(b.root, b.cfg.Device), verified), Budget: time.Minute}
	err := runner.Run(context.Background())
	if cerr := opened.Close(); cerr != nil {
		t.Error(cerr)
	}
	return err
}

// setAuth gives a hierarchy an authorisation value.
func setAuth(t *testing.T, s *tpmkit.Software, hierarchy tpm2.TPMHandle, value string) {
	t.Helper()
	_, err := tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)},
		NewAuth:    tpm2.TPM2BAuth{Buffer: []byte(value)},
	}.Execute(s.Open(t))
	if err != nil {
		t.Fatal(err)
	}
}

// The TPM counts what is wrong, or the vendor's firmware does: a value that was
// refused is not tried again in the same run, whichever hierarchy it is for, and
// nothing stays loaded.
func TestWrongAuthIsTriedOnce(t *testing.T) {
	t.Parallel()
	vendor, factory := manufactured(t)
	for name, c := range map[string]struct {
		hierarchy    tpm2.TPMHandle
		wrong, right tpm.Secrets
	}{
		"owner":       {tpm2.TPMRHOwner, tpm.Secrets{Owner: []byte("wrong")}, tpm.Secrets{Owner: []byte("right")}},
		"endorsement": {tpm2.TPMRHEndorsement, tpm.Secrets{Endorsement: []byte("wrong")}, tpm.Secrets{Endorsement: []byte("right")}},
		"platform":    {tpm2.TPMRHPlatform, tpm.Secrets{Platform: []byte("wrong")}, tpm.Secrets{Platform: []byte("right")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBoard(t, factory.Fork(t), vendor)
			setAuth(t, b.tpm, c.hierarchy, "right")
			refused := 0
			// As the configuration names them: hints are about that.
			b.cfg.TPM.OwnerAuth, b.cfg.TPM.EndorsementAuth, b.cfg.TPM.PlatformAuth = "owner", "endorsement", "platform"
			bus := fault.Tap{TPM: b.tpm.Open(t), Answer: func(code tpm2.TPMCC, _, answer []byte) []byte {
				// The last step looks whether the platform hierarchy is closed to everybody.
				if code != tpm2.TPMCCNVRead && tpm.Denied(returnCode(answer)) {
					refused++
				}
				return answer
			}}
			err := b.runWith(t, idevidSteps, bus, c.wrong)
			if step.ClassOf(err) != step.Refused || !strings.Contains(err.Error(), name+" hierarchy") || !strings.Contains(step.HintOf(err), name+"_auth") {
				t.Errorf("with a wrong value: %v (hint %q)", err, step.HintOf(err))
			}
			if refused != 1 {
				t.Errorf("the wrong value was tried %d times", refused)
			}
			refused = 0
			if err := b.runWith(t, idevidSteps, bus, c.right); err != nil {
				t.Errorf("with the right value: %v", err)
			}
			if refused != 0 {
				t.Errorf("with the right value %d commands were refused", refused)
			}
			b.converged(t, idevidSteps, end{keys: 2, indices: 2})
		})
	}
}

// returnCode is what an answer says of its command.
func returnCode(answer []byte) tpm2.TPMRC {
	if len(answer) < 10 {
		return tpm2.TPMRCSuccess
	}
	return tpm2.TPMRC(uint32(answer[6])<<24 | uint32(answer[7])<<16 | uint32(answer[8])<<8 | uint32(answer[9]))
}

// lacking is a TPM without some algorithms: it refuses to make a key of theirs, as
// one of the return codes that TPMs have for that.
type lacking struct {
	transport.TPM
	templates []tpm2.TPMTPublic
	rc        tpm2.TPMRC
	refused   int
}

func (l *lacking) Send(command []byte) ([]byte, error) {
	switch fault.Code(command) {
	case tpm2.TPMCCCreatePrimary, tpm2.TPMCCCreateLoaded, tpm2.TPMCCCreate:
		for _, template := range l.templates {
			// Type, algorithm of the name, attributes: the template begins so.
			if strings.Contains(string(command), string(tpm2.Marshal(template)[:8])) {
				l.refused++
				return fault.Failure(l.rc), nil
			}
		}
	}
	return l.TPM.Send(command)
}

// A TPM that lacks an algorithm is used without it where that is possible; else
// the error says at once, and once, what else would do.
func TestAlgorithmsThatAreMissing(t *testing.T) {
	t.Parallel()
	vendor := tpmkit.NewVendor(t)
	rsa, ecc := tpmkit.Start(t), tpmkit.Start(t)
	rsa.Manufacture(t, vendor)
	device := ecc.Open(t)
	tpmkit.PutNV(t, device, tpmkit.CertificateECC, vendor.Certify(t, tpmkit.EK(t, device, tpm2.ECCEKTemplate)))
	rsa.Cut()
	ecc.Cut()
	noRSA := []tpm2.TPMTPublic{tpm2.RSAEKTemplate, tpm.DevIDTemplate(true)}
	noECC := []tpm2.TPMTPublic{tpm2.ECCEKTemplate, tpm.DevIDTemplate(false), tpm.SRKTemplate}
	const parameter2 = 0x240 // of the second parameter, as the template is
	for name, c := range map[string]struct {
		factory *tpmkit.Software
		lacks   []tpm2.TPMTPublic
		rc      tpm2.TPMRC
		key     config.KeyAlgorithm
		hint    string // "": all goes well
	}{
		"no RSA, P-256 wanted":          {ecc, noRSA, tpm2.TPMRCValue + parameter2, config.ECCP256, ""},
		"no P-256, RSA wanted":          {rsa, noECC, tpm2.TPMRCCurve + parameter2, config.RSA2048, ""},
		"no RSA, RSA wanted":            {ecc, noRSA, tpm2.TPMRCValue + parameter2, config.RSA2048, `key = "ecc-p256"`},
		"no P-256, P-256 wanted":        {rsa, noECC, tpm2.TPMRCCurve + parameter2, config.ECCP256, `"rsa-2048"`},
		"no ECC at all, P-256 wanted":   {rsa, noECC, tpm2.TPMRCType + parameter2, config.ECCP256, `"rsa-2048"`},
		"no ECC, as an older one says":  {rsa, noECC, tpm2.TPMRCAsymmetric + parameter2, config.ECCP256, `"rsa-2048"`},
		"no RSA of that size":           {ecc, noRSA, tpm2.TPMRCKeySize + parameter2, config.RSA2048, `key = "ecc-p256"`},
		"not what the vendor certified": {rsa, noRSA, tpm2.TPMRCValue + parameter2, config.ECCP256, "the key that its certificate in NV 0x1c00002 is for"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBoard(t, c.factory.Fork(t), vendor)
			b.cfg.IDevID.Key = c.key
			bus := &lacking{TPM: b.tpm.Open(t), templates: c.lacks, rc: c.rc}
			err := b.runWith(t, idevidSteps, bus, tpm.Secrets{})
			if c.hint == "" {
				if err != nil || bus.refused != 0 {
					t.Fatalf("%d keys were refused: %v", bus.refused, err)
				}
				b.converged(t, idevidSteps, end{keys: 2, indices: 2})
				return
			}
			if step.ClassOf(err) != step.Refused || !strings.Contains(step.HintOf(err), c.hint) {
				t.Errorf("%v (class %d, hint %q)", err, step.ClassOf(err), step.HintOf(err))
			}
			if bus.refused != 1 {
				t.Errorf("it was tried %d times", bus.refused)
			}
		})
	}
	t.Run("the storage root key", func(t *testing.T) {
		t.Parallel()
		b := newBoard(t, rsa.Fork(t), vendor)
		if err := b.runWith(t, idevidSteps, b.tpm.Open(t), tpm.Secrets{}); err != nil {
			t.Fatal(err)
		}
		bus := &lacking{TPM: b.tpm.Open(t), templates: noECC, rc: tpm2.TPMRCCurve + parameter2}
		err := b.runWith(t, ldevidSteps, bus, tpm.Secrets{})
		if step.ClassOf(err) != step.Refused || !strings.Contains(step.HintOf(err), "0x81000001 is adopted") || bus.refused != 1 {
			t.Errorf("%v (class %d, hint %q), tried %d times", err, step.ClassOf(err), step.HintOf(err), bus.refused)
		}
	})
}
