package cloud

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"sync"
)

const dpsAPIVersion = "2021-06-01"

// Error codes of DPS: the first three digits are the HTTP status. 401002 is what devices meet in
// practice, whatever is wrong with their certificate.
const (
	dpsBadRequest   = 400004
	dpsUnauthorized = 401002
	dpsNotFound     = 404201
	dpsThrottled    = 429001
	dpsUnavailable  = 503000
)

// registrationID is what DPS takes: up to 128 characters, no special one at either end.
var registrationID = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._:-]{0,126}[A-Za-z0-9])?$`)

// dps stands in for the Azure Device Provisioning Service with one X.509 enrolment group, as
// aziot-identityd talks to it.
type dps struct {
	scope  string
	groups []*authority // whose certificates the enrolment group accepts
	hub    *hub
	faults *faultTable
	log    *eventLog

	mu            sync.Mutex
	registrations map[string]*registration // by operation id
}

// registration is one registration under way.
type registration struct {
	id         string
	thumbprint string
	failed     bool
	polls      int
}

// dpsError is a refusal: an HTTP answer and a line in the log.
type dpsError struct {
	code   int
	reason string
}

func (e *dpsError) Error() string { return e.reason }

func (d *dps) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /{scope}/registrations/{id}/register", d.serve("register", d.register))
	mux.HandleFunc("GET /{scope}/registrations/{id}/operations/{operation}", d.serve("poll", d.poll))
	return mux
}

// serve does what both operations have in common: the checks and the log. In the log, the event
// "registration" is how one ended; the steps before are "dps".
func (d *dps) serve(operation string, do func(w http.ResponseWriter, r *http.Request, e *Event) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		e := &Event{
			Event: "registration", Operation: operation, Remote: r.RemoteAddr,
			Scope: r.PathValue("scope"), ID: r.PathValue("id"),
		}
		err := d.check(r, e)
		if err == nil {
			err = do(w, r, e)
		}
		if err == nil {
			return
		}
		refusal := &dpsError{code: dpsBadRequest, reason: err.Error()}
		errors.As(err, &refusal)
		e.Status, e.Reason = refusal.code/1000, refusal.reason
		d.log.write(e)
		writeJSONAnswer(w, e.Status, map[string]any{
			"errorCode": refusal.code, "message": refusal.reason, "trackingId": rand.Text(),
		})
	}
}

// check is who may speak at all: the right scope, and a certificate for this registration id.
func (d *dps) check(r *http.Request, e *Event) error {
	if v := r.URL.Query().Get("api-version"); v != dpsAPIVersion {
		return &dpsError{dpsBadRequest, fmt.Sprintf("api-version %q is not %s", v, dpsAPIVersion)}
	}
	if e.Scope != d.scope {
		return &dpsError{dpsUnauthorized, "unknown id scope"}
	}
	if !registrationID.MatchString(e.ID) {
		return &dpsError{dpsBadRequest, "not a registration id"}
	}
	if len(r.TLS.PeerCertificates) == 0 {
		return &dpsError{dpsUnauthorized, "no client certificate"}
	}
	e.Auth = "mtls"
	leaf := r.TLS.PeerCertificates[0]
	e.Subject, e.Serial = leaf.Subject.String(), leaf.SerialNumber.Text(16)
	e.Key, _ = keyName(leaf.PublicKey) // a key of another kind only lacks a name in the log
	group, err := d.group(r.TLS.PeerCertificates)
	if err != nil {
		return &dpsError{dpsUnauthorized, err.Error()}
	}
	e.CA = group.label
	if !hasClientAuth(leaf) {
		return &dpsError{dpsUnauthorized, "certificate lacks the extended key usage clientAuth"}
	}
	if leaf.Subject.CommonName != e.ID {
		return &dpsError{dpsUnauthorized, fmt.Sprintf("common name %q is not the registration id", leaf.Subject.CommonName)}
	}
	return nil
}

// group finds the authority that the chain, as presented, leads to. It adds no intermediate: a
// client that sends its leaf alone is refused, as with the real one.
func (d *dps) group(chain []*x509.Certificate) (*authority, error) {
	presented := x509.NewCertPool()
	for _, c := range chain[1:] {
		presented.AddCert(c)
	}
	var first error
	for _, a := range d.groups {
		roots := x509.NewCertPool()
		roots.AddCert(a.root)
		_, err := chain[0].Verify(x509.VerifyOptions{
			Roots:         roots,
			Intermediates: presented,
			KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
		if err == nil {
			return a, nil
		}
		// "Unknown authority" of one group must not hide "expired" of another.
		if unknown := (x509.UnknownAuthorityError{}); first == nil || errors.As(first, &unknown) {
			first = err
		}
	}
	return nil, fmt.Errorf("certificate chain does not lead to a CA of the group: %w", first)
}

func (d *dps) register(w http.ResponseWriter, r *http.Request, e *Event) error {
	var body struct {
		RegistrationID string          `json:"registrationId"`
		Payload        json.RawMessage `json:"payload"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&body); err != nil {
		return &dpsError{dpsBadRequest, "body is not JSON: " + err.Error()}
	}
	if body.RegistrationID != e.ID {
		return &dpsError{dpsBadRequest, fmt.Sprintf("registrationId %q of the body is not that of the path", body.RegistrationID)}
	}
	reg := &registration{id: e.ID, thumbprint: thumbprint(r.TLS.PeerCertificates[0])}
	if f, hit := d.faults.take("dps", "register"); hit {
		e.Fault = f.Kind
		if f.Kind != "failed" {
			if f.RetryAfter != "" {
				w.Header().Set("Retry-After", f.RetryAfter)
			}
			code := map[string]int{"401": dpsUnauthorized, "429": dpsThrottled, "503": dpsUnavailable}[f.Kind]
			return &dpsError{code, "fault " + f.Kind}
		}
		reg.failed = true
	}
	operation := "4." + rand.Text() + "." + rand.Text()
	d.mu.Lock()
	d.registrations[operation] = reg
	d.mu.Unlock()

	e.Event, e.Status = "dps", http.StatusAccepted
	d.log.write(e)
	w.Header().Set("Location", fmt.Sprintf("https://%s/%s/registrations/%s/operations/%s?api-version=%s",
		r.Host, d.scope, e.ID, operation, dpsAPIVersion))
	w.Header().Set("Retry-After", "3")
	writeJSONAnswer(w, http.StatusAccepted, map[string]any{"operationId": operation, "status": "assigning"})
	return nil
}

// poll says "assigning" once and then how it ended.
func (d *dps) poll(w http.ResponseWriter, r *http.Request, e *Event) error {
	operation := r.PathValue("operation")
	d.mu.Lock()
	reg := d.registrations[operation]
	var polls int
	if reg != nil {
		reg.polls++
		polls = reg.polls
	}
	d.mu.Unlock()
	if reg == nil || reg.id != e.ID || reg.thumbprint != thumbprint(r.TLS.PeerCertificates[0]) {
		return &dpsError{dpsNotFound, "no such operation"}
	}

	state := map[string]any{"registrationId": e.ID}
	result := map[string]any{"operationId": operation, "registrationState": state}
	switch {
	case polls == 1:
		e.Event, e.Status, result["status"] = "dps", http.StatusAccepted, "assigning"
		w.Header().Set("Retry-After", "3")
	case reg.failed:
		e.Status, result["status"], e.Reason = http.StatusOK, "failed", "fault failed"
		state["status"], state["errorCode"], state["errorMessage"] = "failed", dpsUnauthorized, "fault failed"
	default:
		e.Status, result["status"], e.Hub = http.StatusOK, "assigned", d.hub.address
		state["status"], state["assignedHub"], state["deviceId"] = "assigned", d.hub.address, e.ID
		d.hub.add(e.ID, reg.thumbprint)
	}
	d.log.write(e)
	writeJSONAnswer(w, e.Status, result)
	return nil
}
