package cloud

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Fault is one misbehaviour, as the control endpoint and the flag --fault take it. It hits requests
// that would have succeeded: wrong credentials are answered with 401 whatever is set.
type Fault struct {
	Label      string `json:"label,omitempty"`     // an EST label or "dps"; empty: any EST label
	Operation  string `json:"operation,omitempty"` // of EST; empty: simpleenroll and simplereenroll
	Kind       string `json:"kind"`
	Skip       int    `json:"skip,omitempty"`        // after so many that it would have hit
	Count      int    `json:"count,omitempty"`       // so many times; 0: until cleared
	RetryAfter string `json:"retry_after,omitempty"` // the header's value, as it is
}

// faultKind is what a kind does; exactly one of its functions is set.
type faultKind struct {
	help    string
	instead func(Fault) *answer                                            // answered without doing anything
	issue   func(*issuance) error                                          // changes the certificate
	chain   func(leaf *x509.Certificate, a *authority) []*x509.Certificate // what is sent, in order
	after   func(*answer)                                                  // changes the good answer
}

var faultKinds = map[string]faultKind{
	"202": {help: "accepted, ask again later", instead: statusFault(http.StatusAccepted)},
	"401": {help: "unauthorized", instead: statusFault(http.StatusUnauthorized)},
	"429": {help: "too many requests", instead: statusFault(http.StatusTooManyRequests)},
	"503": {help: "service unavailable", instead: statusFault(http.StatusServiceUnavailable)},
	"html": {help: "200 with an HTML page, as a captive portal sends", instead: func(Fault) *answer {
		a := newAnswer(http.StatusOK, "<!DOCTYPE html><html><body>Please log in.</body></html>\n")
		a.header.Set("Content-Type", "text/html; charset=utf-8")
		return a
	}},
	"oversize": {help: "200 with 2 MiB of base64", instead: func(Fault) *answer {
		a := newAnswer(http.StatusOK, strings.Repeat("TUlJ", 2<<20/4))
		a.header.Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
		return a
	}},

	"other-key": {help: "certificate for another key", issue: func(i *issuance) error {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err == nil {
			i.public = key.Public()
		}
		return err
	}},
	"ca-cert": {help: "certificate with CA:TRUE", issue: func(i *issuance) error {
		i.template.IsCA = true
		i.template.KeyUsage |= x509.KeyUsageCertSign
		return nil
	}},
	"wrong-cn": {help: "certificate for another common name", issue: func(i *issuance) error {
		i.template.RawSubject = nil
		i.template.Subject = pkix.Name{CommonName: "somebody-else"}
		return nil
	}},
	"no-clientauth": {help: "certificate whose only extended key usage is serverAuth", issue: func(i *issuance) error {
		i.template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		return nil
	}},
	"due": {help: "certificate with nine tenths of its life behind it", issue: func(i *issuance) error {
		i.template.NotBefore = i.template.NotBefore.Add(-90 * 24 * time.Hour)
		i.template.NotAfter = i.template.NotBefore.Add(100 * 24 * time.Hour)
		return nil
	}},
	"expired": {help: "certificate that ended yesterday", issue: func(i *issuance) error {
		i.template.NotBefore = i.template.NotBefore.Add(-48 * time.Hour)
		i.template.NotAfter = i.template.NotBefore.Add(24 * time.Hour)
		return nil
	}},

	"reversed-chain": {help: "issuing CA first, then the leaf", chain: func(leaf *x509.Certificate, a *authority) []*x509.Certificate {
		return []*x509.Certificate{a.issuing, leaf}
	}},
	"shuffled-chain": {help: "root, leaf, issuing CA", chain: func(leaf *x509.Certificate, a *authority) []*x509.Certificate {
		return []*x509.Certificate{a.root, leaf, a.issuing}
	}},

	"drop":  {help: "the connection ends in mid-answer", after: func(a *answer) { a.cut = cutDrop }},
	"stall": {help: "the answer stops half-way and the connection stays open", after: func(a *answer) { a.cut = cutStall }},
	"no-crlf-base64": {help: "base64 on one line and no Content-Transfer-Encoding (RFC 8951)", after: func(a *answer) {
		a.body = bytes.ReplaceAll(a.body, []byte("\r\n"), nil)
		a.header.Del("Content-Transfer-Encoding")
	}},
	"pem-body": {help: "a PEM body, which RFC 8951 asks clients to take", after: func(a *answer) {
		a.body = pem.EncodeToMemory(&pem.Block{Type: "PKCS7", Bytes: decodeBase64(a.body)})
		a.header.Del("Content-Transfer-Encoding")
	}},
}

// dpsFaults are the kinds that the label "dps" knows. They are few, and not a table's worth.
var dpsFaults = []string{"401", "429", "503", "failed"}

// FaultHelp is the list of kinds, a line each.
func FaultHelp() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(faultKinds)) {
		fmt.Fprintf(&b, "  %-15s %s\n", name, faultKinds[name].help)
	}
	fmt.Fprintf(&b, "  and for the label dps: %s (the registration ends as \"failed\")\n", strings.Join(dpsFaults, ", "))
	return b.String()
}

func statusFault(status int) func(Fault) *answer {
	return func(f Fault) *answer {
		a := newAnswer(status, http.StatusText(status)+"\n")
		if f.RetryAfter != "" {
			a.header.Set("Retry-After", f.RetryAfter)
		}
		return a
	}
}

// ParseFault reads a fault from JSON and checks that it can ever happen.
func ParseFault(data []byte) (Fault, error) {
	var f Fault
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields() // a misspelt field would make a test pass for the wrong reason
	if err := d.Decode(&f); err != nil {
		return f, fmt.Errorf("cannot read fault: %w", err)
	}
	return f, f.validate()
}

func (f Fault) validate() error {
	if f.Count < 0 {
		return fmt.Errorf("cannot set fault: count %d is negative", f.Count)
	}
	if f.Skip < 0 {
		return fmt.Errorf("cannot set fault: skip %d is negative", f.Skip)
	}
	if f.Label == "dps" {
		if !slices.Contains(dpsFaults, f.Kind) {
			return fmt.Errorf("cannot set fault: unknown kind %q for dps", f.Kind)
		}
		return nil
	}
	if f.Label != "" && !slices.Contains(labels, f.Label) {
		return fmt.Errorf("cannot set fault: unknown label %q", f.Label)
	}
	if _, known := operations[f.Operation]; f.Operation != "" && !known {
		return fmt.Errorf("cannot set fault: unknown operation %q", f.Operation)
	}
	kind, known := faultKinds[f.Kind]
	if !known {
		return fmt.Errorf("cannot set fault: unknown kind %q", f.Kind)
	}
	if (kind.issue != nil || kind.chain != nil) && f.Operation != "" && !operations[f.Operation].enrols {
		return fmt.Errorf("cannot set fault: %s issues no certificate that could be %s", f.Operation, f.Kind)
	}
	return nil
}

func (f Fault) matches(label, operation string) bool {
	if f.Label == "dps" || label == "dps" {
		return f.Label == label
	}
	if f.Label != "" && f.Label != label {
		return false
	}
	if f.Operation == "" {
		return operations[operation].enrols
	}
	return f.Operation == operation
}

// faultTable holds the faults that are set. The first that matches a request hits it, so a test
// can queue a sequence.
type faultTable struct {
	mu     sync.Mutex
	faults []Fault
}

func (t *faultTable) add(f Fault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.faults = append(t.faults, f)
}

func (t *faultTable) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.faults = nil
}

func (t *faultTable) list() []Fault {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Fault{}, t.faults...)
}

// take returns the fault that hits this request, and counts it.
func (t *faultTable) take(label, operation string) (Fault, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.faults, func(f Fault) bool { return f.matches(label, operation) })
	if i < 0 {
		return Fault{}, false
	}
	if t.faults[i].Skip > 0 {
		t.faults[i].Skip--
		return Fault{}, false
	}
	f := t.faults[i]
	switch f.Count {
	case 0:
	case 1:
		t.faults = slices.Delete(t.faults, i, i+1)
	default:
		t.faults[i].Count--
	}
	return f, true
}
