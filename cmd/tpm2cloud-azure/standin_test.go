package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// azure stands for Azure: three servers on loopback, over TLS, of which each takes only the tokens that are made for it.
//
//	login   Microsoft Entra's token endpoint
//	arm     the resource manager: the fakes of Azure's SDK, behind a table of the requests that are allowed
//	dps     the data plane of the Device Provisioning Service, for which there is no fake
//
// What a request has wrong beyond what the real service would answer to is a violation, which fails the script.
type azure struct {
	mu         sync.Mutex
	seen       *sync.Cond
	violations []string
	transcript []string
	times      []time.Time // of the transcript's lines
	rewrites   []string    // pairs for the transcript: what changes from run to run, and its name there
	faults     []*fault
	operations map[string]*operation

	login, arm, dps *httptest.Server
	state           *resources
	routes          []route
}

const (
	tenant       = "11111111-2222-3333-4444-555555555555"
	subscription = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
	clientID     = "99999999-8888-7777-6666-555555555555"
	clientSecret = "a client's secret"
	armAudience  = "https://management.test"
	dpsAudience  = "https://provisioning.test"
)

func startAzure(dir string) (*azure, error) {
	a := &azure{operations: map[string]*operation{}}
	a.seen = sync.NewCond(&a.mu)
	a.login = httptest.NewTLSServer(a.record("login", a.serveLogin))
	a.arm = httptest.NewTLSServer(a.record("arm", a.serveARM))
	a.dps = httptest.NewTLSServer(a.record("dps", a.serveDPS))
	a.state = newResources(host(a.dps))
	a.setRoutes()
	for name, server := range map[string]*httptest.Server{"LOGIN": a.login, "ARM": a.arm, "DPS": a.dps} {
		a.rewrite(host(server), name)
	}
	// All test servers have the one certificate.
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.login.Certificate().Raw})
	cloud, err := json.Marshal(map[string]any{"name": "Test", "endpoints": map[string]string{
		"activeDirectory": a.login.URL, "activeDirectoryResourceId": armAudience + "/",
		"resourceManager": a.arm.URL, "deviceProvisioningResourceId": dpsAudience,
	}})
	if err != nil {
		return nil, err
	}
	return a, writeAll(dir, map[string][]byte{"azure-ca.pem": ca, "cloud.json": cloud})
}

func (a *azure) setRoutes() {
	routes := armRoutes(a.state)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.routes = routes
}

func writeAll(dir string, contents map[string][]byte) error {
	for name, data := range contents {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (a *azure) close() {
	for _, s := range []*httptest.Server{a.login, a.arm, a.dps} {
		s.Close()
	}
}

func host(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "https://") }

// violate notes what no request may have.
func (a *azure) violate(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.violations = append(a.violations, fmt.Sprintf(format, args...))
}

// rewrite gives something a name in the transcript.
func (a *azure) rewrite(value, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rewrites = append(a.rewrites, value, name)
}

// rewriteCertificate does so with the first certificate of a file.
func (a *azure) rewriteCertificate(file []byte, name string) {
	if block, _ := pem.Decode(file); block != nil {
		a.rewrite(base64.StdEncoding.EncodeToString(block.Bytes), name)
	}
}

// recorder keeps the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// record puts each request and the status of its answer into the transcript, and has the faults happen that are set.
func (a *azure) record(name string, serve func(http.ResponseWriter, *http.Request, []byte)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			a.violate("%s %s: %v", r.Method, r.URL, err)
		}
		if len(body) > 0 && r.Method == http.MethodGet {
			a.violate("%s %s: a GET with a body", r.Method, r.URL)
		}
		answer := &recorder{w, http.StatusOK}
		defer func() { a.note(name, r, body, answer.status) }()
		if f := a.fault(name, r); f != nil {
			f.serve(answer)
			return
		}
		a.state.mu.Lock()
		defer a.state.mu.Unlock()
		serve(answer, r, body)
	})
}

func (a *azure) note(name string, r *http.Request, body []byte, status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	line := fmt.Sprintf("%d %-5s %-4s %s", status, name, r.Method, r.URL.RequestURI())
	if v := r.Header.Get("If-Match"); v != "" {
		line += " If-Match: " + v
	}
	if len(body) > 0 {
		line += " " + string(body)
	}
	a.transcript = append(a.transcript, strings.NewReplacer(a.rewrites...).Replace(line))
	a.times = append(a.times, time.Now())
	a.seen.Broadcast()
}

// await waits until a request has been answered.
func (a *azure) await(pattern *regexp.Regexp) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for !pattern.MatchString(strings.Join(a.transcript, "\n")) {
		a.seen.Wait()
	}
}

// apart is the time between the last two requests that match.
func (a *azure) apart(pattern *regexp.Regexp) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	var last, before time.Time
	for i, line := range a.transcript {
		if pattern.MatchString(line) {
			before, last = last, a.times[i]
		}
	}
	if before.IsZero() {
		return 0
	}
	return last.Sub(before)
}

// --- faults -------------------------------------------------------------------

// fault is an answer in the place of another one.
type fault struct {
	server, method string
	path           *regexp.Regexp
	left           int // how often; below zero: for ever
	status         int
	code, message  string
	retryAfter     string // seconds
}

func (a *azure) fault(server string, r *http.Request) *fault {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range a.faults {
		if f.left != 0 && f.server == server && f.method == r.Method && f.path.MatchString(r.URL.Path) {
			f.left--
			return f
		}
	}
	return nil
}

func (f *fault) serve(w http.ResponseWriter) {
	if f.retryAfter != "" {
		w.Header().Set("Retry-After", f.retryAfter)
	}
	if f.server == "dps" {
		dpsError(w, f.status, f.code, f.message)
		return
	}
	armError(w, f.status, f.code, f.message)
}

func answerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func armError(w http.ResponseWriter, status int, code, message string) {
	answerJSON(w, status, map[string]any{"error": map[string]string{"code": code, "message": message}})
}

func dpsError(w http.ResponseWriter, status int, code, message string) {
	answerJSON(w, status, map[string]any{"errorCode": json.Number(code), "trackingId": "t-1", "message": message, "timestampUtc": "2026-01-01T00:00:00Z"})
}

// --- login --------------------------------------------------------------------

// token is that for an audience. A real one is a JWT; nobody but the service may look into it.
func token(audience string) string { return "token-for-" + audience }

func (a *azure) serveLogin(w http.ResponseWriter, r *http.Request, body []byte) {
	switch r.Method + " " + r.URL.Path {
	case "GET /" + tenant + "/v2.0/.well-known/openid-configuration":
		answerJSON(w, http.StatusOK, map[string]string{
			"issuer": a.login.URL + "/" + tenant + "/v2.0", "authorization_endpoint": a.login.URL + "/" + tenant + "/oauth2/v2.0/authorize",
			"token_endpoint": a.login.URL + "/" + tenant + "/oauth2/v2.0/token",
		})
	case "POST /" + tenant + "/oauth2/v2.0/token":
		form, err := url.ParseQuery(string(body))
		if err != nil || form.Get("grant_type") != "client_credentials" || form.Get("client_id") != clientID {
			a.violate("token request %q", body)
		}
		if form.Get("client_secret") != clientSecret {
			answerJSON(w, http.StatusUnauthorized, map[string]any{"error": "invalid_client",
				"error_description": "AADSTS7000215: Invalid client secret provided. Trace ID: 0 Correlation ID: 1 Timestamp: 2026", "error_codes": []int{7000215}})
			return
		}
		audience, _, ok := strings.Cut(form.Get("scope"), "/.default")
		if !ok {
			a.violate("token request for the scope %q", form.Get("scope"))
		}
		answerJSON(w, http.StatusOK, map[string]any{"token_type": "Bearer", "expires_in": 3599, "access_token": token(audience)})
	default:
		a.violate("login: %s %s", r.Method, r.URL)
		http.NotFound(w, r)
	}
}

// --- resource manager ---------------------------------------------------------

// route is a request that the resource manager takes, and the operation of the SDK that it is.
type route struct {
	method, version string
	path            *regexp.Regexp
	operation       string
	fake            transporter
}

type transporter interface {
	Do(*http.Request) (*http.Response, error)
}

func (a *azure) serveARM(w http.ResponseWriter, r *http.Request, body []byte) {
	if r.Header.Get("Authorization") != "Bearer "+token(armAudience) {
		a.violate("arm: %s %s with the authorization %q", r.Method, r.URL, r.Header.Get("Authorization"))
		armError(w, http.StatusUnauthorized, "InvalidAuthenticationToken", "The access token is invalid.")
		return
	}
	if len(body) > 0 && r.Header.Get("Content-Type") != "application/json" {
		a.violate("arm: %s %s with the content type %q", r.Method, r.URL, r.Header.Get("Content-Type"))
	}
	if r.Method == http.MethodGet && r.URL.Path == "/subscriptions" && r.URL.RawQuery == "api-version=2022-12-01" {
		answerJSON(w, http.StatusOK, a.state.subscriptions())
		return
	}
	if strings.HasPrefix(r.URL.Path, "/operations/") {
		a.poll(w, r)
		return
	}
	if got, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/subscriptions/"), "/"); got != subscription {
		armError(w, http.StatusNotFound, "SubscriptionNotFound", fmt.Sprintf("The subscription '%s' could not be found.", got))
		return
	}
	a.mu.Lock()
	routes := a.routes
	a.mu.Unlock()
	for _, route := range routes {
		if route.method == r.Method && route.path.MatchString(r.URL.Path) && r.URL.RawQuery == "api-version="+route.version {
			a.dispatch(w, r, body, route)
			return
		}
	}
	a.violate("arm: no route for %s %s", r.Method, r.URL)
	armError(w, http.StatusNotFound, "NotFound", "no route")
}

// dispatch hands a request to the SDK's fake, and its answer back. What the fakes say of long operations they say to the
// SDK's client in the same process; over HTTP it is put as the real service puts it.
func (a *azure) dispatch(w http.ResponseWriter, r *http.Request, body []byte, route route) {
	response, err := callFake(r, body, route)
	if err != nil {
		fakeError(w, err)
		return
	}
	defer response.Body.Close()
	status := response.Header.Get("Fake-Poller-Status")
	if status == "" || status == "Succeeded" {
		copyAnswer(w, response)
		return
	}
	a.mu.Lock()
	id := fmt.Sprintf("/operations/%d", len(a.operations)+1)
	a.operations[id] = &operation{route: route, request: r, location: strings.Contains(strings.ToLower(route.operation), "resourcegroups")}
	located := a.operations[id].location
	a.mu.Unlock()
	if located { // resource groups have no other header
		w.Header().Set("Location", a.arm.URL+id+"?api-version="+route.version)
	} else {
		w.Header().Set("Azure-AsyncOperation", a.arm.URL+id+"?api-version="+route.version)
	}
	w.Header().Set("Retry-After-Ms", "1")
	copyAnswer(w, response)
}

// operation is a long one.
type operation struct {
	route    route
	request  *http.Request
	location bool
}

func (a *azure) poll(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	o := a.operations[r.URL.Path]
	a.mu.Unlock()
	if o == nil || r.Method != http.MethodGet {
		a.violate("arm: %s %s is no operation", r.Method, r.URL)
		http.NotFound(w, r)
		return
	}
	next := o.request.Clone(r.Context())
	next.Method = http.MethodGet
	next.URL.Path += "/get/fake/status"
	response, err := callFake(next, nil, o.route)
	w.Header().Set("Retry-After-Ms", "1")
	if err != nil && a.state.failure != nil && !o.location {
		// The fake would go on with the operation that has failed when it is asked for another.
		a.setRoutes()
		answerJSON(w, http.StatusOK, map[string]any{"status": "Failed", "error": a.state.failure})
		return
	}
	if err != nil {
		fakeError(w, err)
		return
	}
	defer response.Body.Close()
	switch status := response.Header.Get("Fake-Poller-Status"); {
	case o.request.Method == http.MethodDelete && !o.location && status == "Succeeded":
		// There is no hub or service any more whose operation this could be.
		armError(w, http.StatusNotFound, "404001", "The resource was not found.")
	case o.location && status == "Succeeded":
		w.WriteHeader(http.StatusOK)
	case o.location:
		w.Header().Set("Location", a.arm.URL+r.URL.RequestURI())
		w.WriteHeader(http.StatusAccepted)
	default:
		answerJSON(w, http.StatusOK, map[string]string{"status": status})
	}
}

func copyAnswer(w http.ResponseWriter, response *http.Response) {
	data, err := io.ReadAll(response.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(response.StatusCode)
	_, _ = w.Write(data)
}

// callFake is a request to a fake as the SDK's client would have made it.
func callFake(r *http.Request, body []byte, route route) (*http.Response, error) {
	request := r.Clone(withOperation(r.Context(), route.operation))
	request.Body = io.NopCloser(bytes.NewReader(body))
	request.URL.Scheme, request.URL.Host = "https", r.Host
	return route.fake.Do(request)
}
