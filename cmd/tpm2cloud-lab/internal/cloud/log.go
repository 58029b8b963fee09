package cloud

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"sync"
	"time"
)

// Event is one line of lab.log. Fields that do not apply are left out. There is no field for a
// password or a secret, and no line ever holds one. The events are
//
//   - "enrol": an enrolment or renewal, granted or refused; "est": any other request to EST
//   - "registration": how a registration with DPS ended; "dps": a step on the way
//   - "hub": a request to the hub; "connect": a CONNECT of the proxy
//   - "tls-error": a handshake that failed; "error": a listener that broke
type Event struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"`

	Listener  string `json:"listener,omitempty"` // which of the EST listeners
	Operation string `json:"operation,omitempty"`
	Label     string `json:"label,omitempty"`
	Auth      string `json:"auth,omitempty"` // "basic", "secret", "mtls", "none"
	Subject   string `json:"subject,omitempty"`
	Serial    string `json:"serial,omitempty"` // hexadecimal, as openssl prints it
	Key       string `json:"key,omitempty"`    // "ECDSA-256", "RSA-2048"
	Fault     string `json:"fault,omitempty"`

	Scope string `json:"scope,omitempty"`
	ID    string `json:"id,omitempty"`
	CA    string `json:"ca,omitempty"` // the group CA that the client's chain led to
	Hub   string `json:"hub,omitempty"`
	Host  string `json:"host,omitempty"` // where a CONNECT went

	Status int    `json:"status,omitempty"` // of HTTP
	Reason string `json:"reason,omitempty"` // why it was refused
	Remote string `json:"remote,omitempty"`
}

// eventLog appends events to a file, each with one write, so that a reader never sees half a line.
type eventLog struct {
	mu   sync.Mutex
	file *os.File
}

func openLog(path string) (*eventLog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot open the log: %w", err)
	}
	return &eventLog{file: f}, nil
}

func (l *eventLog) write(e *Event) {
	e.Time = time.Now().UTC()
	line, err := json.Marshal(e)
	if err != nil {
		panic(err) // Event holds nothing that JSON cannot say
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.file.Write(append(line, '\n')); err != nil {
		fmt.Fprintln(os.Stderr, "error: cannot write the log:", err)
	}
}

func (l *eventLog) close() error { return l.file.Close() }

// serverErrors is what an http.Server has to say, in practice failed TLS handshakes: a test reads
// from it that a client turned away before it sent anything.
func (l *eventLog) serverErrors(listener string) *log.Logger {
	return log.New(lineWriter(func(line string) {
		l.write(&Event{Event: "tls-error", Listener: listener, Reason: line})
	}), "", 0)
}

type lineWriter func(string)

func (w lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	for n > 0 && p[n-1] == '\n' {
		n--
	}
	w(string(p[:n]))
	return len(p), nil
}
