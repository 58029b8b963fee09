package ek_test

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tpm2cloud/tpm2cloud/pkg/ek"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

func certs(cas ...*ca) []*x509.Certificate {
	var list []*x509.Certificate
	for _, a := range cas {
		list = append(list, a.Cert)
	}
	return list
}

// TestVerifyLeaf is about the EK certificate itself; its issuer is trusted.
func TestVerifyLeaf(t *testing.T) {
	root := newCA(t, "Root", nil)
	san := pki.TPMName(t, "id:49465800", "SLB9670", "id:00070055")
	noEKU := func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }
	tests := []struct {
		name    string
		mods    []pki.Change
		options ek.Options
		err     error  // with errors.Is
		oid     string // of a CriticalExtensionError
		warning string // part of the only warning
	}{
		{name: "good"},
		{name: "SAN not critical", mods: []pki.Change{withSAN(false, san)}},
		{name: "SAN missing", mods: []pki.Change{withSAN(false, nil)}, warning: "there is no subject alternative name"},
		{name: "SAN without a TPM", mods: []pki.Change{withSAN(false, pki.TPMName(t))}, warning: "no directoryName names the manufacturer"},
		{name: "manufacturer alone", mods: []pki.Change{withSAN(true, pki.TPMName(t, "id:474F4F47"))}},
		{name: "critical SAN without a TPM", mods: []pki.Change{withSAN(true, pki.TPMName(t))}, oid: "2.5.29.17"},
		{name: "critical SAN with an attribute that is no text", mods: []pki.Change{withSAN(true, pki.TPMName(t, 5))}, oid: "2.5.29.17"},
		{name: "critical SAN with an attribute twice", mods: []pki.Change{withSAN(true, pki.Marshal(t, []asn1.RawValue{
			{FullBytes: firstElement(t, san)}, {FullBytes: firstElement(t, san)}}))}, oid: "2.5.29.17"},
		{name: "critical SAN with a malformed name", mods: []pki.Change{withSAN(true, []byte{0x30, 0x04, 0xA4, 0x02, 0x30, 0x05})}, oid: "2.5.29.17"},
		{name: "critical SAN with bytes after the name", mods: []pki.Change{withSAN(true, []byte{0x30, 0x06, 0xA4, 0x04, 0x30, 0x00, 0x05, 0x00})}, oid: "2.5.29.17"},
		{name: "unknown critical extension", mods: []pki.Change{extension(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, true, []byte{5, 0})}, oid: "1.3.6.1.4.1.99999.1"},
		{name: "unknown extension", mods: []pki.Change{extension(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, false, []byte{5, 0})}},
		{name: "BOOLEAN FALSE in basic constraints", mods: []pki.Change{func(c *x509.Certificate) { c.BasicConstraintsValid = false },
			extension(asn1.ObjectIdentifier{2, 5, 29, 19}, true, []byte{0x30, 0x03, 0x01, 0x01, 0x00})}},
		{name: "CA", mods: []pki.Change{func(c *x509.Certificate) { c.IsCA = true }}, err: ek.ErrIsCA},
		{name: "CA by key usage", mods: []pki.Change{func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign }}, err: ek.ErrIsCA},
		{name: "no EKU", mods: []pki.Change{noEKU}, err: ek.ErrNoEKU},
		{name: "no EKU allowed", mods: []pki.Change{noEKU}, options: ek.Options{AllowNoEKU: true}, warning: "accepted although it lacks"},
		{name: "other EKU", mods: []pki.Change{noEKU, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }},
			options: ek.Options{AllowNoEKU: true}, err: ek.ErrNoEKU},
		{name: "any EKU", mods: []pki.Change{noEKU, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }},
			options: ek.Options{AllowNoEKU: true}, err: ek.ErrNoEKU},
		{name: "EKU of an attestation key", mods: []pki.Change{func(c *x509.Certificate) {
			c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 3}}
		}}, options: ek.Options{AllowNoEKU: true}, err: ek.ErrNoEKU},
		{name: "EKU among others", mods: []pki.Change{func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }}},
		{name: "SHA-1", mods: []pki.Change{func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }}, err: ek.ErrSHA1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := test.options
			o.Anchors, o.At = certs(root), now
			v, err := ek.Verify(mustParse(t, root.ek(t, test.mods...)), o)
			var critical *ek.CriticalExtensionError
			switch {
			case test.oid != "":
				if !errors.As(err, &critical) || critical.OID.String() != test.oid {
					t.Errorf("got %v, want a CriticalExtensionError for %s", err, test.oid)
				}
				return
			case test.err != nil:
				if !errors.Is(err, test.err) {
					t.Errorf("got %v, want %v", err, test.err)
				}
				return
			case err != nil:
				t.Fatal(err)
			}
			if len(v.Chain) != 2 {
				t.Errorf("got a chain of %d certificates, want 2", len(v.Chain))
			}
			if test.warning == "" && len(v.Warnings) > 0 || test.warning != "" && !strings.Contains(strings.Join(v.Warnings, "\n"), test.warning) {
				t.Errorf("got warnings %q, want %q", v.Warnings, test.warning)
			}
		})
	}
}

// firstElement returns the first element of a sequence.
func firstElement(t *testing.T, der []byte) []byte {
	t.Helper()
	var list []asn1.RawValue
	if _, err := asn1.Unmarshal(der, &list); err != nil {
		t.Fatal(err)
	}
	return list[0].FullBytes
}

func TestVerifyChain(t *testing.T) {
	public := newCA(t, "Public CA", nil)
	root := newCA(t, "Vendor Root", public)
	ica := newCA(t, "Vendor CA 1", root)
	c := mustParse(t, ica.ek(t))
	tests := []struct {
		name    string
		options ek.Options
		chain   []*x509.Certificate // without the leaf
	}{
		{"to the public root", ek.Options{Anchors: certs(public), Intermediates: certs(root, ica)}, certs(ica, root, public)},
		{"to a root that is not self-signed", ek.Options{Anchors: certs(root), Intermediates: certs(ica)}, certs(ica, root)},
		{"to the intermediate", ek.Options{Anchors: certs(ica)}, certs(ica)},
		{"anchors help to find the way", ek.Options{Anchors: certs(root, ica)}, nil},
		{"pinned", ek.Options{Anchors: []*x509.Certificate{c.X509}}, certs()},
		{"unneeded junk in NV", ek.Options{Anchors: certs(root), Intermediates: certs(newCA(t, "Other", nil), ica)}, certs(ica, root)},
		{"false issuer of the same name in NV", ek.Options{Anchors: certs(root), Intermediates: certs(newCA(t, "Vendor CA 1", nil), ica)}, certs(ica, root)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.options.At = now
			v, err := ek.Verify(c, test.options)
			if err != nil {
				t.Fatal(err)
			}
			if v.Chain[0] != c.X509 {
				t.Error("the chain does not begin with the certificate itself")
			}
			if test.name != "anchors help to find the way" && !slices.EqualFunc(v.Chain[1:], test.chain, (*x509.Certificate).Equal) {
				t.Errorf("got another chain, of %d", len(v.Chain))
			}
		})
	}
	if len(c.X509.UnhandledCriticalExtensions) != 1 {
		t.Error("Verify has changed the certificate")
	}
}

func TestVerifyUnknownIssuer(t *testing.T) {
	root := newCA(t, "Vendor Root", nil)
	ica := newCA(t, "Vendor CA 1", root, func(c *x509.Certificate) { c.IssuingCertificateURL = []string{"http://ca.example/root.crt"} })
	c := mustParse(t, ica.ek(t))
	leaf := ek.UnknownIssuerError{
		Subject: "IFX SLB9670 id:00070055", Issuer: "CN=Vendor CA 1",
		AuthorityKeyID: []byte("Vendor CA 1"), AIA: []string{"http://ca.example/issuer.crt"},
	}
	forged := leaf
	forged.NameMatches = true
	above := ek.UnknownIssuerError{
		Subject: "CN=Vendor CA 1", Issuer: "CN=Vendor Root",
		AuthorityKeyID: []byte("Vendor Root"), AIA: []string{"http://ca.example/root.crt"},
	}
	selfSigned := ek.UnknownIssuerError{Subject: "CN=Vendor Root", Issuer: "CN=Vendor Root"}
	tests := []struct {
		name    string
		options ek.Options
		want    ek.UnknownIssuerError
	}{
		{"nothing trusted", ek.Options{}, leaf},
		{"intermediate missing", ek.Options{Anchors: certs(root)}, leaf},
		{"root missing", ek.Options{Anchors: certs(newCA(t, "Other", nil)), Intermediates: certs(ica)}, above},
		{"root only in NV", ek.Options{Intermediates: certs(ica, root)}, selfSigned},
		{"issuer with another key", ek.Options{Anchors: certs(newCA(t, "Vendor CA 1", nil))}, forged},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.options.At = now
			_, err := ek.Verify(c, test.options)
			var got *ek.UnknownIssuerError
			if !errors.As(err, &got) {
				t.Fatalf("got %v, want an UnknownIssuerError", err)
			}
			if diff := cmp.Diff(&test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}

	want := `cannot verify the EK certificate: no root or intermediate for issuer "CN=Vendor CA 1" (key identifier 56656e646f722043412031) of "IFX SLB9670 id:00070055"`
	if got := leaf.Error(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestVerifySignature makes sure that a leaf with one bit changed is refused, whatever is allowed.
func TestVerifySignature(t *testing.T) {
	root := newCA(t, "Root", nil)
	der := root.ek(t)
	der[bytes.Index(der, []byte("SLB9670"))] ^= 1
	o := ek.Options{Anchors: certs(root), At: now, AllowExpired: true, AllowNoEKU: true}
	var unknown *ek.UnknownIssuerError
	if _, err := ek.Verify(mustParse(t, der), o); !errors.As(err, &unknown) || !unknown.NameMatches {
		t.Errorf("got %v, want an UnknownIssuerError with NameMatches", err)
	}
	o.At = now.AddDate(20, 0, 0)
	if _, err := ek.Verify(mustParse(t, der), o); !errors.As(err, &unknown) {
		t.Errorf("expired: got %v, want an UnknownIssuerError", err)
	}
}

func TestVerifyIntermediate(t *testing.T) {
	root := newCA(t, "Root", nil)
	verify := func(ica *ca) error {
		_, err := ek.Verify(mustParse(t, ica.ek(t)), ek.Options{Anchors: certs(root), Intermediates: certs(ica), At: now})
		return err
	}
	t.Run("SHA-1", func(t *testing.T) {
		err := verify(newCA(t, "CA", root, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }))
		if !errors.Is(err, ek.ErrSHA1) || !strings.Contains(err.Error(), "CN=CA") {
			t.Errorf("got %v, want ErrSHA1 for CN=CA", err)
		}
	})
	t.Run("unknown critical extension", func(t *testing.T) {
		err := verify(newCA(t, "CA", root, extension(asn1.ObjectIdentifier{1, 2, 3, 4}, true, []byte{5, 0})))
		var critical *ek.CriticalExtensionError
		if !errors.As(err, &critical) || critical.OID.String() != "1.2.3.4" || critical.Subject != "CN=CA" {
			t.Errorf("got %v, want a CriticalExtensionError for 1.2.3.4 of CN=CA", err)
		}
	})
	t.Run("not a CA", func(t *testing.T) {
		err := verify(newCA(t, "CA", root, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 }))
		var unknown *ek.UnknownIssuerError
		if !errors.As(err, &unknown) {
			t.Errorf("got %v, want an UnknownIssuerError", err)
		}
	})
	t.Run("path too long", func(t *testing.T) {
		short := newCA(t, "Short", root, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })
		ica := newCA(t, "CA", short)
		_, err := ek.Verify(mustParse(t, ica.ek(t)), ek.Options{Anchors: certs(root), Intermediates: certs(ica, short), At: now})
		if err == nil || !strings.Contains(err.Error(), "too many intermediates") {
			t.Errorf("got %v, want what crypto/x509 says", err)
		}
	})
}

func TestVerifyDates(t *testing.T) {
	root := newCA(t, "Root", nil, pki.Years(2015, 2035))
	ica := newCA(t, "CA", root, pki.Years(2016, 2025))
	lateRoot := newCA(t, "Late Root", nil, pki.Years(2025, 2045))
	oldRoot := newCA(t, "Old Root", nil, pki.Years(2000, 2010))
	year := func(y int) time.Time { return time.Date(y, 6, 1, 0, 0, 0, 0, time.UTC) }
	const (
		leafExpired = `the certificate of "IFX SLB9670 id:00070055" expired on 2028-01-01`
		icaExpired  = `the certificate of "CN=CA" expired on 2025-01-01`
	)
	tests := []struct {
		name    string
		issuer  *ca
		anchors []*ca
		at      time.Time
		expired []string // the warnings if it's allowed
		early   string   // the subject that is not yet valid
		other   bool     // any other error
	}{
		{name: "valid", issuer: ica, anchors: []*ca{root}, at: year(2024)},
		{name: "intermediate expired", issuer: ica, anchors: []*ca{root}, at: year(2026), expired: []string{icaExpired}},
		{name: "both expired", issuer: ica, anchors: []*ca{root}, at: year(2029), expired: []string{leafExpired, icaExpired}},
		{name: "all expired", issuer: root, anchors: []*ca{root}, at: year(2040),
			expired: []string{leafExpired, `the certificate of "CN=Root" expired on 2035-01-01`}},
		{name: "leaf in the future", issuer: ica, anchors: []*ca{root}, at: year(2017), early: "IFX SLB9670 id:00070055"},
		{name: "1970", issuer: ica, anchors: []*ca{root}, at: time.Unix(0, 0), early: "IFX SLB9670 id:00070055"},
		{name: "issuer in the future", issuer: lateRoot, anchors: []*ca{lateRoot}, at: year(2024), early: "CN=Late Root"},
		{name: "issuer of another time", issuer: oldRoot, anchors: []*ca{oldRoot}, at: year(2024), other: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := mustParse(t, test.issuer.ek(t))
			o := ek.Options{Anchors: certs(test.anchors...), Intermediates: certs(ica), At: test.at}

			_, err := ek.Verify(c, o)
			var expired *ek.ExpiredError
			var early *ek.NotYetValidError
			switch {
			case len(test.expired) > 0:
				if !errors.As(err, &expired) || len(expired.Expired) != len(test.expired) || !expired.At.Equal(test.at) {
					t.Errorf("got %v, want an ExpiredError", err)
				}
			case test.early != "":
				if !errors.As(err, &early) || early.Subject != test.early || !early.From.After(test.at) {
					t.Errorf("got %v, want a NotYetValidError", err)
				}
			case test.other:
				if err == nil || errors.As(err, &expired) || errors.As(err, &early) {
					t.Errorf("got %v, want an error that is not about dates alone", err)
				}
			case err != nil:
				t.Error(err)
			}

			o.AllowExpired = true
			v, err := ek.Verify(c, o)
			if (err == nil) != (test.early == "" && !test.other) {
				t.Fatalf("with AllowExpired: got %v", err)
			}
			if err == nil {
				if diff := cmp.Diff(test.expired, v.Warnings); diff != "" {
					t.Errorf("warnings (-want +got)\n%s", diff)
				}
			}
		})
	}

	t.Run("no time", func(t *testing.T) {
		if _, err := ek.Verify(mustParse(t, root.ek(t)), ek.Options{Anchors: certs(root)}); err == nil {
			t.Error("accepted without a time")
		}
	})
	t.Run("no end", func(t *testing.T) {
		der := root.ek(t, func(c *x509.Certificate) { c.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) })
		if _, err := ek.Verify(mustParse(t, der), ek.Options{Anchors: certs(root), At: now}); err != nil {
			t.Error(err)
		}
	})
}
