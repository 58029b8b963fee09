package est

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Error says how a request failed.
//
// Where the server's certificate was not accepted, errors.As finds a [tls.CertificateVerificationError] and in
// it the error of crypto/x509: [x509.UnknownAuthorityError], [x509.HostnameError] or [x509.CertificateInvalidError].
type Error struct {
	// Op is "cacerts" or "simpleenroll".
	Op  string
	URL string
	// Status is the HTTP status of a complete answer, and 0 when there was none. It is 202
	// (RFC 7030, section 4.2.3) when the server wants to be asked again with the same request, and 200 when
	// the answer is not what EST says: Err tells.
	Status int
	// RetryAfter is when the server wants to be asked again; zero when it did not say. It is not bounded. It counts
	// from the server's own clock where the header is a date, so that it is right on a device whose clock is not.
	RetryAfter time.Time
	// Location is where a redirect points, without query.
	Location string
	// Text is what the server said, in one line of printable characters.
	Text string
	// Err is the cause if there is no answer, or none that can be used.
	Err error
}

var operations = map[string]string{
	"cacerts":      "fetch the CA certificates from",
	"simpleenroll": "enrol at",
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cannot %s %s: ", operations[e.Op], e.URL)
	if e.Err != nil {
		// net/http quotes a header that it does not like, all of it.
		b.WriteString(shortened(e.Err.Error(), maxCause))
		return b.String()
	}
	fmt.Fprintf(&b, "the server answered %d %s", e.Status, http.StatusText(e.Status))
	if e.Location != "" {
		fmt.Fprintf(&b, ", a redirect to %q, which is not followed", e.Location)
	}
	if e.Text != "" {
		fmt.Fprintf(&b, ": %s", e.Text)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// failed is the error of a request that got no complete answer.
func failed(op, target string, err error) *Error {
	// net/http says method and URL as well, and once is enough.
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return &Error{Op: op, URL: target, Err: err}
}

// refused is the error of an answer that is not 200.
func (c *Client) refused(op, target string, answer *http.Response, body []byte) *Error {
	e := &Error{Op: op, URL: target, Status: answer.StatusCode, RetryAfter: retryAfter(answer.Header, time.Now())}
	if to, err := answer.Location(); err == nil && answer.StatusCode/100 == 3 {
		to.User, to.RawQuery, to.Fragment = nil, "", ""
		e.Location = c.withheld(printable(to.String()))
	}
	if kind := mediaType(answer.Header); kind == "" || kind == "text/plain" || strings.HasSuffix(kind, "json") {
		e.Text = c.withheld(printable(string(body)))
	}
	return e
}

// withheld is the text, unless it repeats our credentials, whose place is not in a journal.
func (c *Client) withheld(text string) string {
	for _, secret := range c.secrets {
		if strings.Contains(text, secret) {
			return "(withheld: the answer repeats the credentials)"
		}
	}
	return text
}

// maxText is enough for a sentence, and little enough for a line of the journal; maxCause is for the several of a cause.
const (
	maxText  = 200
	maxCause = 800
)

// printable makes a line of whatever a server sent: no control characters, which a terminal would obey.
func printable(s string) string {
	line := strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s[:min(len(s), 4*maxText)])
	return shortened(strings.Join(strings.Fields(line), " "), maxText)
}

// shortened is a text of so many characters at most.
func shortened(s string, most int) string {
	if len(s) <= most {
		return s
	}
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return s
}

// maxDelay bounds Retry-After to what a [time.Duration] can take.
const maxDelay = 10 * 365 * 24 * time.Hour

// retryAfter reads the header Retry-After (RFC 9110, section 10.2.3): seconds, or a date. A date that is past means now, and
// what is neither is as if there were none.
func retryAfter(header http.Header, now time.Time) time.Time {
	value := header.Get("Retry-After")
	if value == "" {
		return time.Time{}
	}
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return now.Add(time.Duration(min(seconds, uint64(maxDelay/time.Second))) * time.Second)
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return time.Time{}
	}
	sent, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		sent = now
	}
	return now.Add(min(max(at.Sub(sent), 0), maxDelay))
}
