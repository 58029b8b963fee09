package cloud

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
)

const hubAPIVersion = "2017-11-08-preview"

// hub stands in for the identity registry of an IoT Hub, over REST as aziot-identityd uses it. A
// device proves itself with the very certificate it registered with at DPS: a hub knows thumbprints
// and no CAs.
type hub struct {
	address string // host:port, as DPS tells devices
	log     *eventLog

	mu      sync.Mutex
	devices map[string]*hubDevice
}

type hubDevice struct {
	thumbprint string
	modules    map[string]*module
}

// module is an identity below a device.
type module struct {
	ModuleID       string          `json:"moduleId"`
	ManagedBy      string          `json:"managedBy,omitempty"`
	DeviceID       string          `json:"deviceId"`
	GenerationID   string          `json:"generationId"`
	Authentication json.RawMessage `json:"authentication,omitempty"`
}

func thumbprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// add creates a device with the two system modules that edge-capable ones have, or gives a device
// that registers again its new certificate.
func (h *hub) add(id, thumbprint string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.devices[id]
	if d == nil {
		d = &hubDevice{modules: make(map[string]*module)}
		for _, name := range []string{"$edgeAgent", "$edgeHub"} {
			d.modules[name] = &module{ModuleID: name, ManagedBy: "iotEdge", DeviceID: id, GenerationID: rand.Text()}
		}
		h.devices[id] = d
	}
	d.thumbprint = thumbprint
}

func (h *hub) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /devices/{id}/modules", h.serve("list", listModules))
	mux.HandleFunc("GET /devices/{id}/modules/{module}", h.serve("get", getModule))
	mux.HandleFunc("PUT /devices/{id}/modules/{module}", h.serve("put", putModule))
	mux.HandleFunc("DELETE /devices/{id}/modules/{module}", h.serve("delete", deleteModule))
	return mux
}

// serve authenticates and logs; do answers, while the registry is locked.
func (h *hub) serve(operation string, do func(d *hubDevice, r *http.Request, body []byte) (int, any)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		e := &Event{Event: "hub", Operation: operation, ID: r.PathValue("id"), Hub: h.address, Remote: r.RemoteAddr}
		status, result := http.StatusBadRequest, any(nil)
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		h.mu.Lock()
		device := h.devices[e.ID]
		switch {
		case err != nil:
			result = hubError("cannot read body: " + err.Error())
		case r.URL.Query().Get("api-version") != hubAPIVersion:
			result = hubError("api-version is not " + hubAPIVersion)
		case len(r.TLS.PeerCertificates) == 0:
			status, result = http.StatusUnauthorized, hubError("no client certificate")
		case device == nil || device.thumbprint != thumbprint(r.TLS.PeerCertificates[0]):
			status, result = http.StatusUnauthorized, hubError("not the certificate of this device")
		default:
			status, result = do(device, r, body)
		}
		h.mu.Unlock()
		e.Status = status
		if refusal, is := result.(hubError); is {
			e.Reason = string(refusal)
		}
		h.log.write(e)
		if result == nil {
			w.WriteHeader(status)
			return
		}
		writeJSONAnswer(w, status, result)
	}
}

// hubError is a refusal in the hub's JSON.
type hubError string

// MarshalJSON gives the message its member name.
func (e hubError) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{"message": string(e)})
}

func listModules(d *hubDevice, _ *http.Request, _ []byte) (int, any) {
	return http.StatusOK, slices.SortedFunc(maps.Values(d.modules), func(a, b *module) int {
		return strings.Compare(a.ModuleID, b.ModuleID)
	})
}

func getModule(d *hubDevice, r *http.Request, _ []byte) (int, any) {
	m := d.modules[r.PathValue("module")]
	if m == nil {
		return http.StatusNotFound, hubError("no such module")
	}
	return http.StatusOK, m
}

// putModule creates a module, or changes one: that needs If-Match, and keeps the generation.
func putModule(d *hubDevice, r *http.Request, body []byte) (int, any) {
	name := r.PathValue("module")
	var m module
	if err := json.Unmarshal(body, &m); err != nil {
		return http.StatusBadRequest, hubError("body is not JSON: " + err.Error())
	}
	if m.ModuleID != name || m.DeviceID != r.PathValue("id") {
		return http.StatusBadRequest, hubError(fmt.Sprintf("body names %s/%s", m.DeviceID, m.ModuleID))
	}
	old, update := d.modules[name], r.Header.Get("If-Match") != ""
	switch {
	case update && old == nil:
		return http.StatusNotFound, hubError("no such module")
	case update:
		m.GenerationID = old.GenerationID
	case old != nil:
		return http.StatusConflict, hubError("module exists already")
	default:
		m.GenerationID = rand.Text()
	}
	d.modules[name] = &m
	return http.StatusOK, &m
}

func deleteModule(d *hubDevice, r *http.Request, _ []byte) (int, any) {
	name := r.PathValue("module")
	if d.modules[name] == nil {
		return http.StatusNotFound, hubError("no such module")
	}
	delete(d.modules, name)
	return http.StatusNoContent, nil
}
