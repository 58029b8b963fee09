package cloud

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Hold has the EST server stop at one exchange with a client and say so: for a test that takes the
// client's power away at that moment. The exchange never goes on; it ends when the client goes away
// or the next hold is set, which counts from then on.
type Hold struct {
	At  string `json:"at"`
	Nth int    `json:"nth"` // which connection or request, from 1 on; 0: none, they are only counted
}

// The places of a hold.
const (
	holdConnection = "connection" // before the first byte of TLS is answered
	holdRequest    = "request"    // a request was read, and nothing done
	holdAnswer     = "answer"     // it was done, and nothing is sent
	holdHalf       = "half"       // half of the answer is sent
)

var holdPlaces = []string{holdConnection, holdRequest, holdAnswer, holdHalf}

// holder is the place that is waited at.
type holder struct {
	mu          sync.Mutex
	hold        Hold
	connections int
	requests    int
	held        chan struct{} // closed when an exchange is held
	over        chan struct{} // closed when it ends
}

func newHolder() *holder {
	return &holder{held: make(chan struct{}), over: make(chan struct{})}
}

// set replaces the hold, and ends what the last one held.
func (h *holder) set(hold Hold) {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.over)
	h.hold, h.connections, h.requests = hold, 0, 0
	h.held, h.over = make(chan struct{}), make(chan struct{})
}

func (h *holder) connection() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.connections++
	return h.connections
}

func (h *holder) request() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests++
	return h.requests
}

// hits says whether an exchange is held at a place.
func (h *holder) hits(place string, nth int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hold == Hold{place, nth}
}

// wait holds an exchange, if it is to be held here, and says that it has.
func (h *holder) wait(ctx context.Context, place string, nth int) bool {
	h.mu.Lock()
	if h.hold != (Hold{place, nth}) {
		h.mu.Unlock()
		return false
	}
	over := h.over
	close(h.held)
	h.hold = Hold{}
	h.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-over:
	}
	return true
}

// control is its part of the control endpoint: PUT /hold sets a hold, GET /hold says what was
// counted since, and GET /held answers when an exchange is held.
func (h *holder) control(mux *http.ServeMux) {
	mux.HandleFunc("PUT /hold", func(w http.ResponseWriter, r *http.Request) {
		var hold Hold
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16))
		d.DisallowUnknownFields()
		err := d.Decode(&hold)
		if err == nil && (hold.Nth < 0 || hold.Nth > 0 && !slices.Contains(holdPlaces, hold.At)) {
			err = fmt.Errorf("cannot hold the exchange %d at %q; places are %s", hold.Nth, hold.At, strings.Join(holdPlaces, ", "))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		h.set(hold)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /hold", func(w http.ResponseWriter, _ *http.Request) {
		h.mu.Lock()
		counted := map[string]int{"connections": h.connections, "requests": h.requests}
		h.mu.Unlock()
		writeJSONAnswer(w, http.StatusOK, counted)
	})
	mux.HandleFunc("GET /held", func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		held := h.held
		h.mu.Unlock()
		select {
		case <-held:
			w.WriteHeader(http.StatusNoContent)
		case <-r.Context().Done():
		}
	})
}
