package cloud

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

// registration is a register request of aziot-identityd.
func (l *lab) registration(id string, chain tls.Certificate) request {
	return request{
		method: "PUT", url: l.DPSURL + "/" + l.IDScope + "/registrations/" + id + "/register?api-version=" + dpsAPIVersion,
		body:  []byte(`{"registrationId":"` + id + `"}`),
		chain: []tls.Certificate{chain},
	}
}

func decode(t *testing.T, r reply) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(r.body, &m); err != nil {
		t.Fatalf("%d %s: %v", r.status, r.body, err)
	}
	return m
}

// register registers a device and returns the hub that it is assigned to.
func (l *lab) register(id string, chain tls.Certificate) string {
	l.t.Helper()
	started := l.do(l.registration(id, chain))
	if m := decode(l.t, started); started.status != 202 || m["status"] != "assigning" || m["operationId"] == "" {
		l.t.Fatalf("%d %s", started.status, started.body)
	}
	poll := request{method: "GET", url: started.header.Get("Location"), chain: []tls.Certificate{chain}}
	first := l.do(poll)
	if m := decode(l.t, first); first.status != 202 || m["status"] != "assigning" {
		l.t.Fatalf("%d %s", first.status, first.body)
	}
	second := l.do(poll)
	m := decode(l.t, second)
	state, _ := m["registrationState"].(map[string]any)
	if second.status != 200 || m["status"] != "assigned" || state["deviceId"] != id || state["registrationId"] != id {
		l.t.Fatalf("%d %s", second.status, second.body)
	}
	hub, _ := state["assignedHub"].(string)
	return hub
}

func TestDPS(t *testing.T) {
	t.Parallel()
	l := startLab(t)
	for _, label := range []string{"operational", "ldevid"} {
		hub := l.register("device-1", l.identity(label, "device-1"))
		if "https://"+hub != l.HubURL {
			t.Errorf("assigned to %s", hub)
		}
		e := l.lastEvent()
		if e.Event != "registration" || e.Operation != "poll" || e.CA != label || e.Hub != hub || e.Scope != l.IDScope || e.ID != "device-1" {
			t.Errorf("logged %+v", e)
		}
	}
}

// TestDPSRefused has a case for each thing that can be wrong with a registration.
func TestDPSRefused(t *testing.T) {
	t.Parallel()
	l := startLab(t)
	good := l.identity("operational", "device-1")
	alone := good
	alone.Certificate = good.Certificate[:1]
	special := func(change func(*x509.Certificate)) tls.Certificate {
		ca, caKey := l.issuer(l.OperationalCA)
		key := newKey(t)
		template := &x509.Certificate{
			SerialNumber: newSerial(), Subject: pkix.Name{CommonName: "device-1"},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		change(template)
		leaf, err := sign(template, ca, key.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		return pairOf(key, leaf, ca)
	}
	with := func(old, new string) request {
		r := l.registration("device-1", good)
		r.url = strings.Replace(r.url, old, new, 1)
		return r
	}
	body := func(text string) request {
		r := l.registration("device-1", good)
		r.body = []byte(text)
		return r
	}
	noCert := l.registration("device-1", good)
	noCert.chain = nil

	for _, test := range []struct {
		name   string
		r      request
		code   float64
		reason string
	}{
		{"api-version", with(dpsAPIVersion, "2019-03-31"), dpsBadRequest, "api-version"},
		{"no api-version", with("?api-version="+dpsAPIVersion, ""), dpsBadRequest, "api-version"},
		{"scope", with(l.IDScope, "0ne00000000"), dpsUnauthorized, "id scope"},
		{"path", with("device-1", "device-2"), dpsUnauthorized, "common name"},
		{"case of the path", with("device-1", "Device-1"), dpsUnauthorized, "common name"},
		{"charset", l.registration("device%201", good), dpsBadRequest, "registration id"},
		{"special character at the end", l.registration("device-", good), dpsBadRequest, "registration id"},
		{"length", l.registration(strings.Repeat("d", 129), good), dpsBadRequest, "registration id"},
		{"body", body(`{"registrationId":"device-2"}`), dpsBadRequest, "body"},
		{"case of the body", body(`{"registrationId":"Device-1"}`), dpsBadRequest, "body"},
		{"empty body", body(``), dpsBadRequest, "JSON"},
		{"no certificate", noCert, dpsUnauthorized, "no client certificate"},
		{"leaf alone", l.registration("device-1", alone), dpsUnauthorized, "chain"},
		{"IDevID", l.registration("device-1", l.identity("idevid", "device-1")), dpsUnauthorized, "chain"},
		{"no EKU", l.registration("device-1", special(func(c *x509.Certificate) { c.ExtKeyUsage = nil })), dpsUnauthorized, "clientAuth"},
		{"other EKU", l.registration("device-1", special(func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		})), dpsUnauthorized, "incompatible key usage"},
		{"expired", l.registration("device-1", special(func(c *x509.Certificate) {
			c.NotAfter = time.Now().Add(-time.Minute)
		})), dpsUnauthorized, "expired"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := l.do(test.r)
			m := decode(t, r)
			e := l.lastEvent()
			message, _ := m["message"].(string)
			if r.status != int(test.code)/1000 || m["errorCode"] != test.code || !strings.Contains(message, test.reason) ||
				e.Status != r.status || !strings.Contains(e.Reason, test.reason) || e.Hub != "" {
				t.Errorf("%d %s, logged %+v", r.status, r.body, e)
			}
		})
	}

	// Another device's operation is none.
	started := l.do(l.registration("device-1", good))
	for _, r := range []request{
		{method: "GET", url: started.header.Get("Location"), chain: []tls.Certificate{l.identity("operational", "device-1")}},
		{method: "GET", url: strings.Replace(started.header.Get("Location"), "/operations/", "/operations/x", 1), chain: []tls.Certificate{good}},
	} {
		if got := l.do(r); got.status != http.StatusNotFound {
			t.Errorf("poll: %d %s", got.status, got.body)
		}
	}
}

func TestDPSFaults(t *testing.T) {
	t.Parallel()
	l := startLab(t)
	pair := l.identity("operational", "device-1")
	for kind, status := range map[string]int{"401": 401, "429": 429, "503": 503} {
		l.setFault(`{"label":"dps","kind":"` + kind + `","count":1,"retry_after":"5"}`)
		if r := l.do(l.registration("device-1", pair)); r.status != status || r.header.Get("Retry-After") != "5" {
			t.Errorf("%s: %d %v", kind, r.status, r.header)
		}
	}
	l.setFault(`{"label":"dps","kind":"failed","count":1}`)
	started := l.do(l.registration("device-1", pair))
	poll := request{method: "GET", url: started.header.Get("Location"), chain: []tls.Certificate{pair}}
	l.do(poll)
	ended := l.do(poll)
	state, _ := decode(t, ended)["registrationState"].(map[string]any)
	if ended.status != 200 || state["status"] != "failed" || state["errorCode"] != float64(dpsUnauthorized) {
		t.Errorf("%d %s", ended.status, ended.body)
	}
}

func TestHub(t *testing.T) {
	t.Parallel()
	l := startLab(t)
	pair, later := l.identity("operational", "device-1"), l.identity("operational", "device-1")
	l.register("device-1", pair)
	call := func(method, module, body string, pair tls.Certificate, header http.Header) reply {
		return l.do(request{
			method: method, url: l.HubURL + "/devices/device-1/modules" + module + "?api-version=" + hubAPIVersion,
			body: []byte(body), chain: []tls.Certificate{pair}, header: header,
		})
	}
	const mine = `{"moduleId":"mine","deviceId":"device-1"}`
	match := http.Header{"If-Match": {"*"}}
	for _, test := range []struct {
		name, method, module, body string
		header                     http.Header
		status                     int
	}{
		{"list", "GET", "", "", nil, 200},
		{"agent", "GET", "/$edgeAgent", "", nil, 200},
		{"missing", "GET", "/mine", "", nil, 404},
		{"update of nothing", "PUT", "/mine", mine, match, 404},
		{"create", "PUT", "/mine", mine, nil, 200},
		{"create twice", "PUT", "/mine", mine, nil, 409},
		{"update", "PUT", "/mine", mine, match, 200},
		{"update of the agent", "PUT", "/$edgeAgent", `{"moduleId":"$edgeAgent","deviceId":"device-1"}`, match, 200},
		{"other name", "PUT", "/mine", `{"moduleId":"yours","deviceId":"device-1"}`, match, 400},
		{"delete", "DELETE", "/mine", "", nil, 204},
		{"delete twice", "DELETE", "/mine", "", nil, 404},
	} {
		r := call(test.method, test.module, test.body, pair, test.header)
		if r.status != test.status {
			t.Errorf("%s: %d %s", test.name, r.status, r.body)
		}
		if test.status == 200 && test.module != "" && decode(t, r)["generationId"] == "" {
			t.Errorf("%s: no generation: %s", test.name, r.body)
		}
	}
	if r := call("GET", "", "", later, nil); r.status != 401 {
		t.Errorf("certificate that is not registered: %d", r.status)
	}
	l.register("device-1", later) // renewed
	if r := call("GET", "", "", later, nil); r.status != 200 {
		t.Errorf("renewed certificate: %d", r.status)
	}
	if r := l.do(request{method: "GET", url: l.HubURL + "/devices/device-1/modules?api-version=1", chain: []tls.Certificate{later}}); r.status != 400 {
		t.Errorf("api-version: %d", r.status)
	}
}
