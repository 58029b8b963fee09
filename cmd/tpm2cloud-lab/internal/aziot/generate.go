package aziot

import (
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// generate makes a key pair in a token and puts it in the place of one with the same label.
func (m *module) generate(uri *TokenURI, algorithm string) error {
	mechanism, parameters, err := generation(algorithm)
	if err != nil {
		return err
	}
	attribute := pkcs11.NewAttribute
	public := append(parameters,
		attribute(pkcs11.CKA_ENCRYPT, true),
		attribute(pkcs11.CKA_PRIVATE, false),
		attribute(pkcs11.CKA_TOKEN, true),
		attribute(pkcs11.CKA_VERIFY, true),
		attribute(pkcs11.CKA_LABEL, uri.Object),
	)
	private := []*pkcs11.Attribute{
		attribute(pkcs11.CKA_DECRYPT, true),
		attribute(pkcs11.CKA_PRIVATE, true),
		attribute(pkcs11.CKA_SENSITIVE, true),
		attribute(pkcs11.CKA_SIGN, true),
		attribute(pkcs11.CKA_TOKEN, true),
		attribute(pkcs11.CKA_LABEL, uri.Object),
	}
	return m.phase(uri, true, func(s session) error {
		if err := s.destroy(uri); err != nil {
			return err
		}
		_, _, err := s.ctx.GenerateKeyPair(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, public, private)
		if err != nil {
			return fmt.Errorf("C_GenerateKeyPair: %w", err)
		}
		return nil
	})
}

// destroy removes both halves of a key, if they are there.
func (s session) destroy(uri *TokenURI) error {
	for _, class := range []uint{pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_PRIVATE_KEY} {
		o, err := s.find(class, uri)
		if errors.Is(err, errNoKey) {
			continue
		}
		if err == nil {
			err = s.ctx.DestroyObject(s.h, o)
		}
		if err != nil {
			return fmt.Errorf("cannot remove the old key: %w", err)
		}
	}
	return nil
}

// generation returns what is special about an algorithm: the mechanism and its parameters.
func generation(algorithm string) (uint, []*pkcs11.Attribute, error) {
	switch algorithm {
	case algorithmRSA:
		return pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, 2048),
			pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
		}, nil
	case algorithmEC:
		oid, err := asn1.Marshal(oidP256)
		return pkcs11.CKM_EC_KEY_PAIR_GEN, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, oid)}, err
	}
	return 0, nil, fmt.Errorf("unknown key algorithm %q", algorithm)
}
