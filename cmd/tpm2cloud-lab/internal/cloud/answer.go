package cloud

import (
	"encoding/base64"
	"net/http"
	"strconv"
)

// answer is an HTTP answer that is complete before any of it is sent: it can be changed by a fault,
// and the log line is written before the client can see it.
type answer struct {
	status int
	header http.Header
	body   []byte
	cut    cut
	// halfway is where cutHold waits.
	halfway func()
}

// cut is how an answer ends short of its end.
type cut int

const (
	cutNone  cut = iota
	cutDrop      // the connection is closed
	cutStall     // nothing more comes
	cutHold      // nothing more comes, and a hold is told
)

func newAnswer(status int, body string) *answer {
	a := &answer{status: status, header: make(http.Header), body: []byte(body)}
	a.header.Set("Content-Type", "text/plain; charset=utf-8")
	return a
}

// Header, Write and WriteHeader make an answer the http.ResponseWriter of the EST router.
func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	a.body = append(a.body, p...)
	return len(p), nil
}

func (a *answer) send(w http.ResponseWriter, r *http.Request) {
	for name, values := range a.header {
		w.Header()[name] = values
	}
	if a.status == http.StatusNoContent { // has no body, though the EST router writes one
		w.WriteHeader(a.status)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	w.WriteHeader(a.status)
	if a.cut == cutNone {
		// A client that went away is no concern of the server's.
		_, _ = w.Write(a.body)
		return
	}
	_, _ = w.Write(a.body[:len(a.body)/2])
	_ = http.NewResponseController(w).Flush()
	switch a.cut {
	case cutStall:
		<-r.Context().Done()
	case cutHold:
		a.halfway()
	}
	panic(http.ErrAbortHandler) // net/http's way to end a connection without a word
}

// decodeBase64 decodes what the EST router encoded itself.
func decodeBase64(body []byte) []byte {
	der, err := base64.StdEncoding.AppendDecode(nil, body)
	if err != nil {
		panic(err)
	}
	return der
}
