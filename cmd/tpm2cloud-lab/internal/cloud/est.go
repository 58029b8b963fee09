package cloud

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/globalsign/est"
)

const estPrefix = "/.well-known/est/"

// operations are what the EST server offers of RFC 7030.
var operations = map[string]struct{ enrols bool }{
	"cacerts":        {},
	"csrattrs":       {},
	"simpleenroll":   {enrols: true},
	"simplereenroll": {enrols: true},
}

// estServer wraps the router of globalsign/est, which knows the protocol, with what it leaves to
// its user: labels, authentication, the log, and here faults as well.
type estServer struct {
	router   http.Handler
	cas      map[string]*authority
	accounts Accounts
	lifetime map[string]lifetime
	faults   *faultTable
	hold     *holder
	log      *eventLog
}

func newESTServer(cas map[string]*authority, accounts Accounts, days map[string]int, faults *faultTable, hold *holder, log *eventLog) (*estServer, error) {
	s := &estServer{cas: cas, accounts: accounts, faults: faults, hold: hold, log: log, lifetime: make(map[string]lifetime)}
	for label, n := range days {
		s.lifetime[label] = daysLifetime(n)
	}
	var err error
	s.router, err = est.NewRouter(&est.ServerConfig{CA: (*estCA)(s)})
	if err != nil {
		return nil, fmt.Errorf("cannot set up the EST server: %w", err)
	}
	return s, nil
}

// exchange is what one request needs beyond HTTP; the router carries it to the CA in the context.
type exchange struct {
	event *Event
	fault *Fault // that changes the certificate or the answer; nil: none
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// handler serves one listener: all serve the same, and the log says where a request came in.
func (s *estServer) handler(listener string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		event := &Event{Event: "est", Listener: listener, Remote: r.RemoteAddr}
		nth := s.hold.request()
		if s.hold.wait(r.Context(), holdRequest, nth) {
			panic(http.ErrAbortHandler)
		}
		a := s.serve(r, event)
		event.Status = a.status
		if a.status >= 400 && event.Reason == "" {
			event.Reason = strings.TrimSpace(string(a.body))
		}
		s.log.write(event)
		if s.hold.wait(r.Context(), holdAnswer, nth) {
			panic(http.ErrAbortHandler)
		}
		if s.hold.hits(holdHalf, nth) {
			a.cut = cutHold
			a.halfway = func() { s.hold.wait(r.Context(), holdHalf, nth) }
		}
		a.send(w, r)
	})
}

func (s *estServer) serve(r *http.Request, event *Event) *answer {
	path, ours := strings.CutPrefix(r.URL.Path, estPrefix)
	label, operation, labelled := strings.Cut(path, "/")
	op, offered := operations[operation]
	if s.cas[label] == nil || !ours || !labelled || !offered {
		return newAnswer(http.StatusNotFound, "no such EST operation: "+r.URL.Path+"\n")
	}
	event.Label, event.Operation = label, operation

	x := &exchange{event: event}
	if op.enrols {
		event.Event = "enrol"
		if err := s.authenticate(r, label, operation, event); err != nil {
			event.Reason = err.Error()
			a := newAnswer(http.StatusUnauthorized, "401 authentication required\n")
			a.header.Set("WWW-Authenticate", `Basic realm="tpm2cloud-lab"`)
			return a
		}
	}
	var kind faultKind
	if f, hit := s.faults.take(label, operation); hit {
		event.Fault, x.fault, kind = f.Kind, &f, faultKinds[f.Kind]
	}
	if kind.instead != nil {
		return kind.instead(*x.fault)
	}
	a := &answer{header: make(http.Header)}
	s.router.ServeHTTP(a, r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x)))
	if kind.after != nil && a.status == http.StatusOK {
		kind.after(a)
	}
	return a
}

// estError is an error that the router turns into an HTTP answer.
type estError struct {
	status int
	text   string
}

func (e *estError) StatusCode() int { return e.status }
func (e *estError) Error() string   { return e.text }
func (e *estError) RetryAfter() int { return 0 }

var errNotOffered = &estError{http.StatusNotImplemented, "not offered here"}

func keyName(public any) (string, error) {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		return fmt.Sprintf("ECDSA-%d", k.Curve.Params().BitSize), nil
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", k.N.BitLen()), nil
	}
	return "", errors.New("neither an ECDSA nor an RSA key")
}
