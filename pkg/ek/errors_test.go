package ek_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/ek"
)

func TestErrorTexts(t *testing.T) {
	cause := errors.New("cause")
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "CA"}, NotAfter: time.Date(2025, 10, 20, 1, 2, 3, 0, time.UTC)}
	for _, test := range []struct {
		err  error
		want string
	}{
		{&ek.MalformedError{What: "EK certificate", Reason: "reason"}, "cannot parse the EK certificate: reason"},
		{&ek.MalformedError{What: "EK certificate", Reason: "reason", Err: cause}, "cannot parse the EK certificate: reason: cause"},
		{&ek.SlotKeyError{Slot: ek.Slots()[0], Key: ek.P384},
			"cannot use the EK certificate at 0x01C00002: its key is of the kind P-384, and the slot is for RSA-2048"},
		{&ek.SlotKeyError{Slot: ek.Slots()[1]},
			"cannot use the EK certificate at 0x01C0000A: its key is of the kind unknown, and the slot is for P-256"},
		{&ek.UnsupportedKeyError{Keys: []ek.KeyKind{ek.P384, ek.RSA3072}},
			"cannot use the EK certificates of the TPM: they are for P-384, RSA-3072, and only RSA-2048 and P-256 are supported"},
		{&ek.UnknownIssuerError{Subject: "CN=A", Issuer: "CN=B", NameMatches: true},
			`cannot verify the EK certificate: no root or intermediate for issuer "CN=B" of "CN=A"; a CA of that name is known, but did not sign it`},
		{&ek.CriticalExtensionError{Subject: "CN=A", OID: asn1.ObjectIdentifier{1, 2, 3}},
			`cannot verify the EK certificate: critical extension 1.2.3 of "CN=A" is not known`},
		{&ek.CriticalExtensionError{Subject: "CN=A", OID: asn1.ObjectIdentifier{2, 5, 29, 17}, Err: cause},
			`cannot verify the EK certificate: critical extension 2.5.29.17 of "CN=A": cause`},
		{&ek.ExpiredError{At: now, Expired: []*x509.Certificate{ca}},
			`cannot verify the EK certificate: the certificate of "CN=CA" expired on 2025-10-20 (judged at 2024-01-01T00:00:00Z)`},
		{&ek.NotYetValidError{At: now, Subject: "CN=CA", From: now.AddDate(1, 0, 0)},
			`cannot verify the EK certificate: "CN=CA" is not valid before 2025-01-01T00:00:00Z (judged at 2024-01-01T00:00:00Z)`},
	} {
		if got := test.err.Error(); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
	for _, err := range []error{&ek.MalformedError{Err: cause}, &ek.CriticalExtensionError{Err: cause}} {
		if !errors.Is(err, cause) {
			t.Errorf("%T does not wrap its cause", err)
		}
	}
}
