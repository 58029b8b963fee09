package idevid

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/ek"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// ekKey puts the endorsement key at its persistent handle: the one that the
// vendor certified, made from the TCG's template or from the one that the
// vendor left in NV. A key that is there already is adopted when it is the
// certified one.
type ekKey struct{ *Program }

func (ekKey) Name() string { return "ek-key" }

// certified is what decides on the EK: the vendor's certificate, or nil where
// there is none and the configuration does without.
func (p *Program) certified() (*ek.Entry, error) {
	v, err := p.readVendor()
	if err != nil {
		return nil, err
	}
	if v.entry != nil || p.cfg.EK.Verify != config.VerifyRequire {
		return v.entry, nil
	}
	hint := "the certificate in the TPM's NV is of no use; ask the TPM's vendor, or set [ek] verify = \"warn\" to do without"
	if errors.Is(v.err, ek.ErrNotFound) {
		hint = "has the TPM's vendor put it elsewhere? Put it into NV, or set [ek] verify = \"warn\" to do without"
	}
	return nil, step.Because(step.NotGenuine, step.As(step.Refused, hint, fmt.Errorf("cannot find out whether this TPM is genuine: %w", v.err)))
}

// ekHandle is where the EK belongs.
func ekHandle(certified *ek.Entry) tpm2.TPMHandle {
	if certified != nil && certified.Certificate.Kind == ek.P256 {
		return tpm.HandleEKECC
	}
	return tpm.HandleEKRSA
}

func (s ekKey) Observe(context.Context) (step.Observation, error) {
	certified, err := s.certified()
	if err != nil {
		return step.Observation{}, err
	}
	handle := ekHandle(certified)
	obs := step.Observation{Object: fmt.Sprintf("%#x", uint32(handle))}
	key, err := s.tpm.ReadPublic(handle)
	if errors.Is(err, tpm.ErrNotFound) {
		return obs, nil
	}
	if err != nil {
		return obs, err
	}
	switch why := usableEK(key, certified); {
	case why != "":
		obs.State, obs.Detail = step.Conflict, why
		obs.Hint = fmt.Sprintf("if nothing needs that key, remove it: tpm2_evictcontrol -C o -c %#x", uint32(handle))
	default:
		s.ek = key
		obs.State, obs.Detail = step.Present, describeEK(key)
	}
	return obs, nil
}

// usableEK says why a key cannot be the EK, or nothing.
func usableEK(key *tpm.Key, certified *ek.Entry) string {
	if certified != nil {
		if public, err := key.PublicKey(); err != nil || !ek.SameKey(public, certified.Certificate.Key) {
			return "the key is not the one that the EK certificate is for"
		}
	} else if !key.Matches(tpm.EKTemplate(true, false)) {
		return "the key is not made from the TCG's template of an EK"
	}
	if !tpm.StorageKey(key.Public) {
		return "no key can be made under it: it is not a restricted decryption key"
	}
	return ""
}

func describeEK(key *tpm.Key) string {
	if key.Public.Type == tpm2.TPMAlgRSA {
		return "RSA 2048 endorsement key"
	}
	return "P-256 endorsement key"
}

func (s ekKey) Act(_ context.Context, obs step.Observation) (err error) {
	if err := s.prepare(); err != nil {
		return err
	}
	certified, err := s.certified()
	if err != nil {
		return err
	}
	// Before anything is made in this TPM, or an authorisation shown to it.
	if err := s.genuine(certified); err != nil {
		return err
	}
	template, err := s.ekTemplate(certified)
	if err != nil {
		return err
	}
	loaded, err := s.tpm.CreatePrimary(tpm2.TPMRHEndorsement, template)
	if err != nil {
		err = fmt.Errorf("cannot make the EK: %w", err)
		if errors.Is(err, tpm.ErrLacking) {
			err = step.Hint(err, "%s", lacking(certified))
		}
		return err
	}
	defer func() { err = errors.Join(err, loaded.Flush()) }()
	if why := usableEK(&tpm.Key{Handle: loaded.Handle, Public: loaded.Public}, certified); why != "" {
		return step.Because(step.NotGenuine, step.As(step.Refused, "the certificate in NV is another TPM's, or this EK was made from a template that the vendor does not say",
			fmt.Errorf("cannot use the EK that this TPM makes: %s", why)))
	}
	return s.tpm.Persist(loaded, ekHandle(certified))
}

// lacking is the next action where the TPM cannot make the EK.
func lacking(certified *ek.Entry) string {
	if certified == nil {
		return "this TPM has no RSA 2048, and no EK certificate says which key to make instead; ask the TPM's vendor for the certificate"
	}
	return fmt.Sprintf("this TPM cannot make the key that its certificate in NV %#x is for; is it this TPM's, and its template beside it the vendor's?", certified.Slot.Certificate)
}

// ekTemplate is what the EK is made from (EK Credential Profile 2.5, 2.2.1.4
// and B.3): the template in NV, else the TCG's, into whose unique field a nonce
// in NV goes.
func (p *Program) ekTemplate(certified *ek.Entry) (tpm2.TPMTPublic, error) {
	if certified == nil {
		return tpm.EKTemplate(true, false), nil
	}
	slot, v := certified.Slot, p.vendor
	if v.template != nil {
		template, err := tpm2.Unmarshal[tpm2.TPMTPublic](v.template)
		if err != nil {
			return tpm2.TPMTPublic{}, step.Fail(step.Refused, "cannot read the EK's template in the NV index %#x: %w", slot.Template, err)
		}
		return *template, nil
	}
	template := tpm.EKTemplate(certified.Certificate.Kind == ek.RSA2048, slot.HighRange())
	switch {
	case v.nonce == nil:
	case len(v.nonce) <= nonceMax:
		template.Unique = nonceUnique(template.Type, v.nonce)
	default:
		// swtpm keeps the template of its P-256 key where the TCG has the nonce.
		misplaced, err := tpm2.Unmarshal[tpm2.TPMTPublic](v.nonce)
		if err != nil {
			return tpm2.TPMTPublic{}, step.Fail(step.Refused, "cannot use the nonce in the NV index %#x: it has %d bytes, at most %d fit", slot.Nonce, len(v.nonce), nonceMax)
		}
		template = *misplaced
	}
	return template, nil
}

// nonceMax is the smallest unique field that a nonce goes into, in bytes: that
// of a P-256 key. Nonces have the size of a digest.
const nonceMax = 32

// nonceUnique is the unique field of the low range's templates with a nonce:
// the nonce, and zeros up to the field's size.
func nonceUnique(alg tpm2.TPMAlgID, nonce []byte) tpm2.TPMUPublicID {
	padded := func(size int) []byte {
		b := make([]byte, size)
		copy(b, nonce)
		return b
	}
	if alg == tpm2.TPMAlgRSA {
		return tpm2.NewTPMUPublicID(alg, &tpm2.TPM2BPublicKeyRSA{Buffer: padded(256)})
	}
	return tpm2.NewTPMUPublicID(alg, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: padded(32)},
		Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
	})
}
