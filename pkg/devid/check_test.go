package devid_test

import (
	"crypto"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// now is when the tests judge certificates, whatever the clock says.
var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func TestCheck(t *testing.T) {
	root := pki.NewCA(t, "root", nil)
	issuing := pki.NewCA(t, "issuing", root)
	stranger := pki.NewCA(t, "stranger", nil)
	impostor := pki.NewCA(t, "issuing", nil) // the same name, another key
	serverOnly := pki.NewCA(t, "server only", root, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	oldIssuing := pki.NewCA(t, "old issuing", root, pki.Dates(now.AddDate(-3, 0, 0), now.AddDate(0, 0, -1)))
	oldRoot := pki.NewCA(t, "old root", nil, pki.Dates(now.AddDate(-9, 0, 0), now.AddDate(0, 0, -1)))
	ofOldRoot := pki.NewCA(t, "of old root", oldRoot)
	lateRoot := pki.NewCA(t, "late root", nil, pki.Dates(now.AddDate(-1, 0, 0), now.AddDate(9, 0, 0)))
	endedSince := pki.NewCA(t, "ended since", lateRoot, pki.Dates(now.AddDate(-3, 0, 0), now.AddDate(0, 0, -1)))
	future := pki.NewCA(t, "future", root, pki.Dates(now.AddDate(0, 0, 1), now.AddDate(9, 0, 0)))
	key, other := pki.NewKey(t), pki.NewKey(t)
	subject := devid.Subject("dev-1", "SN1", "Example")

	leaf := func(ca *pki.CA, changes ...pki.Change) *x509.Certificate {
		return ca.Issue(t, key.Public(), subject, changes...)
	}
	// What is kept of an IDevID that was made two years ago.
	forever := func(ca *pki.CA) *x509.Certificate {
		return leaf(ca, pki.Dates(now.AddDate(-2, 0, 0), devid.NoExpiry()))
	}
	outlives := func(e *devid.Expect) { e.NoExpiry, e.Outlives = true, true }
	good := leaf(issuing)
	both := []*x509.Certificate{issuing.Cert, root.Cert}
	type certs = []*x509.Certificate

	tests := []struct {
		name   string
		answer certs
		roots  certs // both, if nil
		change func(*devid.Expect)
		err    error    // what errors.Is finds
		as     any      // a pointer for errors.As
		text   string   // part of the error
		path   []string // common names of the intermediates
		warn   string   // part of the only warning
	}{
		{name: "leaf alone", answer: certs{good}, path: []string{"issuing"}},
		{name: "leaf first", answer: certs{good, issuing.Cert, root.Cert}, path: []string{"issuing"}},
		{name: "root first", answer: certs{root.Cert, issuing.Cert, good}, path: []string{"issuing"}},
		{name: "twice the same", answer: certs{good, issuing.Cert, good}, path: []string{"issuing"}},
		{name: "intermediate only in the answer", answer: certs{issuing.Cert, good}, roots: certs{root.Cert}, path: []string{"issuing"}},
		{name: "issuing CA is the only anchor", answer: certs{good}, roots: certs{issuing.Cert}, path: []string{"issuing"}},
		{name: "issued by the root", answer: certs{leaf(root)}, path: nil},

		{name: "nothing", err: devid.ErrOtherKey},
		{name: "other key", answer: certs{issuing.Issue(t, other.Public(), subject), issuing.Cert}, err: devid.ErrOtherKey},
		{name: "two leaves", answer: certs{good, leaf(issuing)}, err: devid.ErrAmbiguous},
		{name: "CA", answer: certs{leaf(issuing, func(c *x509.Certificate) { c.IsCA = true })}, err: devid.ErrIsCA},
		{name: "CA by key usage", answer: certs{leaf(issuing, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign })}, err: devid.ErrIsCA},
		{name: "CA wins over its subject", answer: certs{issuing.Issue(t, key.Public(), pkix.Name{CommonName: "x"}, func(c *x509.Certificate) { c.IsCA = true })}, err: devid.ErrIsCA},

		{name: "other common name", answer: certs{issuing.Issue(t, key.Public(), devid.Subject("dev-2", "SN1", "Example"))}, as: new(*devid.SubjectError), text: `its subject is "SERIALNUMBER=SN1,CN=dev-2,O=Example" and not`},
		{name: "common name of another case", answer: certs{issuing.Issue(t, key.Public(), devid.Subject("DEV-1", "SN1", "Example"))}, as: new(*devid.SubjectError)},
		{name: "an attribute less", answer: certs{issuing.Issue(t, key.Public(), devid.Subject("dev-1", "SN1", ""))}, as: new(*devid.SubjectError)},
		{name: "an attribute more", answer: certs{issuing.Issue(t, key.Public(), pkix.Name{CommonName: "dev-1", SerialNumber: "SN1", Organization: []string{"Example"}, Country: []string{"CH"}})}, as: new(*devid.SubjectError)},
		{name: "an attribute that Go has no field for", answer: certs{issuing.Issue(t, key.Public(), pkix.Name{ExtraNames: append(slices.Clone(good.Subject.Names), pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 12}, Value: "title"})})}, as: new(*devid.SubjectError)},
		{name: "another order of attributes", answer: certs{reversed(t, issuing, key.Public(), good)}, path: []string{"issuing"}},
		{name: "any subject", answer: certs{issuing.Issue(t, key.Public(), pkix.Name{CommonName: "x"})}, change: func(e *devid.Expect) { e.AnySubject = true }, path: []string{"issuing"}},
		{name: "any subject with a common name", answer: certs{issuing.Issue(t, key.Public(), devid.Subject("x", "", ""))}, change: func(e *devid.Expect) { e.AnySubject, e.CommonName = true, "dev-1" }, as: new(*devid.SubjectError), text: `its subject is "x" and not "dev-1"`},

		{name: "unknown CA", answer: certs{leaf(stranger), stranger.Cert}, as: new(*devid.ChainError), text: "CN=stranger"},
		{name: "CA of the same name", answer: certs{leaf(impostor), impostor.Cert}, as: new(*devid.ChainError)},
		{name: "self-signed", answer: certs{(&pki.CA{Key: key}).Issue(t, key.Public(), subject)}, as: new(*devid.ChainError)},
		{name: "no roots", answer: certs{good}, roots: certs{}, as: new(*devid.ChainError)},
		{name: "SHA-1", answer: certs{sha1Signed(t, good, issuing)}, as: new(*devid.ChainError), text: "SHA1"},
		{name: "critical extension", answer: certs{leaf(issuing, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		})}, as: new(*devid.ChainError)},

		{name: "expired", answer: certs{leaf(issuing, pki.Dates(now.Add(-48*time.Hour), now.Add(-24*time.Hour)))}, as: new(*devid.DateError), text: "ended 2026-05-31T12:00:00Z (judged at 2026-06-01T12:00:00Z)"},
		{name: "not yet valid", answer: certs{leaf(issuing, pki.Dates(now.Add(time.Hour), now.Add(2*time.Hour)))}, as: new(*devid.DateError), text: "does not begin before 2026-06-01T13:00:00Z"},
		{name: "skew", answer: certs{leaf(issuing, pki.Dates(now.Add(5*time.Minute), now.Add(2*time.Hour)))}, path: []string{"issuing"}},
		{name: "expired issuer", answer: certs{leaf(oldIssuing, pki.Dates(now.AddDate(-2, 0, 0), now.AddDate(1, 0, 0))), oldIssuing.Cert}, as: new(*devid.DateError), text: `"CN=old issuing" ended`},
		{name: "issuer that was never valid together with it", answer: certs{leaf(oldIssuing, pki.Dates(now.Add(-time.Hour), now.AddDate(1, 0, 0))), oldIssuing.Cert}, as: new(*devid.DateError), text: `"CN=old issuing" ended`},
		{name: "before the epoch of everything", answer: certs{good}, change: func(e *devid.Expect) { e.At = time.Unix(0, 0) }, as: new(*devid.DateError)},
		{name: "expired and of an unknown CA", answer: certs{leaf(stranger, pki.Dates(now.Add(-48*time.Hour), now.Add(-24*time.Hour)))}, as: new(*devid.ChainError), text: "unknown authority"},

		{name: "serverAuth only", answer: certs{leaf(issuing, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })}, err: devid.ErrNoClientAuth},
		{name: "serverAuth only and expired", answer: certs{leaf(issuing, pki.Dates(now.Add(-48*time.Hour), now.Add(-24*time.Hour)), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })}, err: devid.ErrNoClientAuth},
		{name: "unknown purpose only", answer: certs{leaf(issuing, func(c *x509.Certificate) {
			c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 2, 3}}
		})}, err: devid.ErrNoClientAuth},
		{name: "CA for servers only", answer: certs{leaf(serverOnly), serverOnly.Cert}, err: devid.ErrNoClientAuth},
		{name: "serverAuth only, and no matter", answer: certs{leaf(issuing, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })}, change: func(e *devid.Expect) { e.ClientAuth = false }, path: []string{"issuing"}},
		{name: "no purpose", answer: certs{leaf(issuing, func(c *x509.Certificate) { c.ExtKeyUsage = nil })}, path: []string{"issuing"}, warn: "no extended key usage"},
		{name: "no digitalSignature", answer: certs{leaf(issuing, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement })}, err: devid.ErrNoSignature},
		{name: "no key usage", answer: certs{leaf(issuing, func(c *x509.Certificate) { c.KeyUsage = 0 })}, path: []string{"issuing"}},

		{name: "IDevID that ends", answer: certs{good}, change: func(e *devid.Expect) { e.NoExpiry = true }, path: []string{"issuing"}, warn: "99991231235959Z"},
		{name: "IDevID without end", answer: certs{leaf(issuing, pki.Dates(now, devid.NoExpiry()))}, change: func(e *devid.Expect) { e.NoExpiry = true }, path: []string{"issuing"}},

		{name: "IDevID that outlives its CA", answer: certs{forever(oldIssuing), oldIssuing.Cert}, roots: certs{root.Cert}, change: outlives, path: []string{"old issuing"}, warn: `the CA certificate of "CN=old issuing" ended 2026-05-31T12:00:00Z`},
		{name: "IDevID that outlives its CA, the only anchor", answer: certs{forever(oldIssuing)}, roots: certs{oldIssuing.Cert}, change: outlives, path: []string{"old issuing"}, warn: `"CN=old issuing" ended`},
		{name: "IDevID that outlives its root", answer: certs{forever(ofOldRoot), ofOldRoot.Cert}, roots: certs{oldRoot.Cert}, change: outlives, path: []string{"of old root"}, warn: `"CN=old root" ended`},
		{name: "IDevID whose root began after it", answer: certs{forever(endedSince), endedSince.Cert}, roots: certs{lateRoot.Cert}, change: outlives, path: []string{"ended since"}, warn: `"CN=ended since" ended`},
		{name: "IDevID whose CA is in use still", answer: certs{forever(issuing)}, change: outlives, path: []string{"issuing"}},
		{name: "IDevID that has ended with its CA", answer: certs{leaf(oldIssuing, pki.Dates(now.AddDate(-2, 0, 0), now.AddDate(0, 0, -2))), oldIssuing.Cert}, change: outlives, as: new(*devid.DateError), text: `CN=dev-1,O=Example" ended`},
		{name: "IDevID that has not begun", answer: certs{leaf(issuing, pki.Dates(now.Add(time.Hour), devid.NoExpiry()))}, change: outlives, as: new(*devid.DateError), text: "does not begin before"},
		{name: "IDevID whose CA has not begun", answer: certs{forever(future), future.Cert}, change: outlives, as: new(*devid.DateError), text: `"CN=future" does not begin before`},
		{name: "IDevID that a CA issued after its end", answer: certs{leaf(oldIssuing, pki.Dates(now.Add(-time.Hour), devid.NoExpiry())), oldIssuing.Cert}, change: outlives, as: new(*devid.DateError), text: `"CN=old issuing" ended`},
		{name: "IDevID of an unknown CA that has ended", answer: certs{forever(oldIssuing), oldIssuing.Cert}, roots: certs{stranger.Cert}, change: outlives, as: new(*devid.ChainError)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			want := devid.Expect{Key: key.Public(), Subject: subject, ClientAuth: true, Roots: both, At: now}
			if test.roots != nil {
				want.Roots = test.roots
			}
			if test.change != nil {
				test.change(&want)
			}
			chain, err := devid.Check(test.answer, want)
			if test.err != nil || test.as != nil {
				if test.err != nil && !errors.Is(err, test.err) || test.as != nil && !errors.As(err, test.as) {
					t.Fatalf("got the error %v", err)
				}
				if !strings.HasPrefix(err.Error(), "cannot accept the certificate") || !strings.Contains(err.Error(), test.text) {
					t.Errorf("got the text %q, want %q in it", err, test.text)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !devid.SameKey(chain.Leaf.PublicKey, key.Public()) {
				t.Error("the leaf is for another key")
			}
			var path []string
			for _, c := range chain.Intermediates {
				path = append(path, c.Subject.CommonName)
			}
			if !slices.Equal(path, test.path) {
				t.Errorf("got the path %q, want %q", path, test.path)
			}
			if warnings := strings.Join(chain.Warnings, "\n"); test.warn == "" && warnings != "" || !strings.Contains(warnings, test.warn) {
				t.Errorf("got the warnings %q, want %q", warnings, test.warn)
			}
			again, err := devid.ParsePEM(chain.PEM())
			if err != nil || len(again) != 1+len(path) || !again[0].Equal(chain.Leaf) {
				t.Errorf("the PEM holds %d certificates: %v", len(again), err)
			}
			if _, err := devid.Check(again, want); err != nil {
				t.Errorf("what was kept is not good any more: %v", err)
			}
		})
	}
}

// reversed certifies the attributes of a subject in reverse order, each as UTF8String.
func reversed(t *testing.T, ca *pki.CA, key crypto.PublicKey, like *x509.Certificate) *x509.Certificate {
	var name pkix.RDNSequence
	for _, a := range like.Subject.Names {
		value := asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(a.Value.(string))}
		name = slices.Insert(name, 0, pkix.RelativeDistinguishedNameSET{{Type: a.Type, Value: value}})
	}
	raw, err := asn1.Marshal(name)
	if err != nil {
		t.Fatal(err)
	}
	return ca.Issue(t, key, pkix.Name{}, func(c *x509.Certificate) { c.RawSubject = raw })
}

// sha1Signed signs a certificate anew, with SHA-1, which crypto/x509 refuses to do.
func sha1Signed(t *testing.T, like *x509.Certificate, ca *pki.CA) *x509.Certificate {
	t.Helper()
	algorithm := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}}
	var tbs struct {
		Version      asn1.RawValue
		Serial       asn1.RawValue
		Algorithm    pkix.AlgorithmIdentifier
		Issuer       asn1.RawValue
		Validity     asn1.RawValue
		Subject, Key asn1.RawValue
		Extensions   asn1.RawValue
	}
	if _, err := asn1.Unmarshal(like.RawTBSCertificate, &tbs); err != nil {
		t.Fatal(err)
	}
	tbs.Algorithm = algorithm
	raw, err := asn1.Marshal(tbs)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha1.Sum(raw)
	signature, err := ca.Key.Sign(nil, digest[:], crypto.SHA1)
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: raw}, algorithm, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestAnchorsOfAKeyUpdate(t *testing.T) {
	old := pki.NewCA(t, "root", nil)
	renewed := pki.NewCA(t, "root", nil)
	// RFC 4210, section 4.4: the new key, certified by the old one.
	newWithOld := old.Issue(t, renewed.Key.Public(), renewed.Cert.Subject, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.SubjectKeyId = true, x509.KeyUsageCertSign, renewed.Cert.SubjectKeyId
		c.AuthorityKeyId = old.Cert.SubjectKeyId
	})
	anchors, others := devid.Anchors([]*x509.Certificate{newWithOld, renewed.Cert, old.Cert})
	if len(anchors) != 2 || len(others) != 1 || !others[0].Equal(newWithOld) {
		t.Errorf("got %d anchors and %d others", len(anchors), len(others))
	}
}

func TestVerify(t *testing.T) {
	root := pki.NewCA(t, "root", nil)
	issuing := pki.NewCA(t, "issuing", root)
	leaf := issuing.Issue(t, pki.NewKey(t).Public(), pkix.Name{CommonName: "x"})
	path, err := devid.Verify(leaf, []*x509.Certificate{issuing.Cert}, []*x509.Certificate{root.Cert}, now)
	if err != nil || len(path) != 3 || !path[2].Equal(root.Cert) {
		t.Errorf("got a path of %d: %v", len(path), err)
	}
	if _, err := devid.Verify(leaf, nil, []*x509.Certificate{root.Cert}, now); !errors.As(err, new(*devid.ChainError)) {
		t.Errorf("without the intermediate: %v", err)
	}
}
