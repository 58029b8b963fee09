package cloud

import (
	"context"
	"net/http"
	"strings"
	"testing"
)

// TestHold holds the second exchange at each place, and looks at what was done by then.
func TestHold(t *testing.T) {
	t.Parallel()
	for place, issued := range map[string]int{holdConnection: 1, holdRequest: 1, holdAnswer: 2, holdHalf: 2} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			l := startLab(t)
			if r := l.do(request{method: "PUT", url: l.ControlURL + "/hold", body: []byte(`{"at":"` + place + `","nth":2}`)}); r.status != http.StatusNoContent {
				t.Fatalf("%d %s", r.status, r.body)
			}
			enrolment := l.enrolment("idevid", newCSR(t, newKey(t), "device-1")).withBasic(l.Username, l.Password)
			if r := l.do(enrolment); r.status != http.StatusOK {
				t.Fatalf("the first enrolment: %d %s", r.status, r.body)
			}
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			answered := make(chan error, 1)
			go func() {
				req, err := http.NewRequestWithContext(ctx, enrolment.method, enrolment.url, strings.NewReader(string(enrolment.body)))
				if err == nil {
					req.Header = enrolment.header.Clone()
					var a *http.Response
					if a, err = l.client().Do(req); err == nil {
						_, err = a.Body.Read(make([]byte, 1<<20))
						for err == nil {
							_, err = a.Body.Read(make([]byte, 1<<20))
						}
						a.Body.Close()
					}
				}
				answered <- err
			}()
			if r := l.do(request{method: "GET", url: l.ControlURL + "/held"}); r.status != http.StatusNoContent {
				t.Fatalf("%d %s", r.status, r.body)
			}
			select {
			case err := <-answered:
				t.Errorf("the exchange went on: %v", err)
			default:
			}
			certificates := 0
			for _, e := range l.events() {
				if e.Event == "enrol" && e.Status == http.StatusOK {
					certificates++
				}
			}
			if certificates != issued {
				t.Errorf("%d certificates were issued, want %d", certificates, issued)
			}
			// It ends with the hold, and never well.
			if r := l.do(request{method: "PUT", url: l.ControlURL + "/hold", body: []byte(`{"nth":0}`)}); r.status != http.StatusNoContent {
				t.Errorf("%d %s", r.status, r.body)
			}
			if err := <-answered; err == nil || err.Error() == "EOF" {
				t.Errorf("the exchange that was held ended well: %v", err)
			}
			if r := l.do(enrolment); r.status != http.StatusOK {
				t.Errorf("the next enrolment: %d", r.status)
			}
			if r := l.do(request{method: "GET", url: l.ControlURL + "/hold"}); strings.TrimSpace(string(r.body)) != `{"connections":1,"requests":1}` {
				t.Errorf("counted: %s", r.body)
			}
		})
	}
}

func TestHoldRefusesNonsense(t *testing.T) {
	t.Parallel()
	l := startLab(t)
	for _, wrong := range []string{``, `{"nth":1}`, `{"at":"nonsense","nth":1}`, `{"at":"request","nth":-1}`, `{"at":"request","n":1}`} {
		if r := l.do(request{method: "PUT", url: l.ControlURL + "/hold", body: []byte(wrong)}); r.status != http.StatusBadRequest {
			t.Errorf("%s: %d", wrong, r.status)
		}
	}
}
