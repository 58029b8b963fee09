package est

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Options are what a client needs to know. Only Server is needed.
type Options struct {
	// Server is the server's host, or host:port; the port is 443 otherwise.
	Server string
	// Label chooses one of several CAs of a server (RFC 7030, section 3.2.2).
	Label string
	// Roots are the CAs by which the server is verified; nil is the system's store.
	Roots *x509.CertPool

	// Username and Password are for HTTP Basic authentication; it is used if one of them is set.
	Username, Password string
	// Secret is the value of the header Secret-Value, a shared secret as GlobalSign's server knows it.
	Secret string
	// Certificate is shown to a server that asks for one.
	Certificate *tls.Certificate

	// Proxy chooses a proxy, as [http.Transport] has it; nil is none.
	Proxy func(*http.Request) (*url.URL, error)
	// Time is when the server's certificate is judged; nil is the system's clock.
	Time func() time.Time
	// Timeout is for a whole exchange; 0 is a minute.
	Timeout   time.Duration
	UserAgent string
}

// Client sends requests to one EST server. It may be used by several goroutines.
type Client struct {
	base    url.URL // with the path up to the operation
	options Options
	secrets []string // what must not appear in an error
	http    http.Client
}

// New makes a client. It opens no connection.
func New(o Options) (*Client, error) {
	host, err := address(o.Server)
	if err != nil {
		return nil, fmt.Errorf("cannot use the EST server %q: %w", o.Server, err)
	}
	if err := checkLabel(o.Label); err != nil {
		return nil, fmt.Errorf("cannot use the EST label %q: %w", o.Label, err)
	}
	if strings.Contains(o.Username, ":") {
		return nil, fmt.Errorf("cannot use the user name %q: HTTP Basic has no way to write its colon (RFC 7617, section 2)", o.Username)
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	c := &Client{
		base:    url.URL{Scheme: "https", Host: host, Path: "/.well-known/est"},
		options: o,
		http: http.Client{
			Transport:     transport(o),
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	if o.Label != "" {
		c.base.Path += "/" + o.Label
	}
	for _, secret := range []string{o.Password, o.Secret, basic(o.Username, o.Password)} {
		if secret != "" {
			c.secrets = append(c.secrets, secret)
		}
	}
	return c, nil
}

// Close ends the connections that are kept for the next request.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// CACerts fetches the certificates of the CA (RFC 7030, section 4.1). They are as trustworthy as the server.
func (c *Client) CACerts(ctx context.Context) ([]*x509.Certificate, error) {
	return c.do(ctx, "cacerts", http.MethodGet, nil)
}

// SimpleEnroll asks for a certificate with a PKCS#10 request in DER (RFC 7030, section 4.2). The answer may hold the
// certificate alone or with its chain, in any order.
func (c *Client) SimpleEnroll(ctx context.Context, csr []byte) ([]*x509.Certificate, error) {
	return c.do(ctx, "simpleenroll", http.MethodPost, encode(csr))
}

// SimpleReenroll asks for another certificate in the place of the one that the client shows, under the same name, for the
// same key or another (RFC 7030, section 4.2.2). The request and the answer are those of SimpleEnroll.
func (c *Client) SimpleReenroll(ctx context.Context, csr []byte) ([]*x509.Certificate, error) {
	return c.do(ctx, "simplereenroll", http.MethodPost, encode(csr))
}

func (c *Client) do(ctx context.Context, op, method string, body []byte) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.options.Timeout, fmt.Errorf("no complete answer within %s", c.options.Timeout))
	defer cancel()
	target := c.base.JoinPath(op).String()
	request, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, failed(op, target, err)
	}
	c.header(request.Header, method)
	answer, content, err := c.exchange(request)
	if ctx.Err() != nil {
		// Also where all seems well: a server that sees us hang up may still end its answer in good form.
		if err = context.Cause(ctx); errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no complete answer in the time that was left (%w)", err)
		}
	}
	if err != nil {
		return nil, failed(op, target, err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, c.refused(op, target, answer, content)
	}
	if err = checkType(answer.Header, content); err == nil {
		var certs []*x509.Certificate
		if certs, err = decode(content); err == nil {
			return certs, nil
		}
		if answer.ContentLength < 0 && len(answer.TransferEncoding) == 0 {
			// It ends where the connection does, and whoever cuts that cuts it.
			return nil, failed(op, target, fmt.Errorf("the answer breaks off, or cannot be used: it does not say how long it is, and %w", err))
		}
	}
	return nil, &Error{Op: op, URL: target, Status: answer.StatusCode, Err: fmt.Errorf("the answer cannot be used: %w", err)}
}

// exchange reads the whole answer, or one byte more than it may have.
func (c *Client) exchange(request *http.Request) (*http.Response, []byte, error) {
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(io.LimitReader(answer.Body, maxBody+1))
	if err != nil {
		return nil, nil, fmt.Errorf("the answer breaks off: %w", err)
	}
	return answer, content, nil
}

func (c *Client) header(h http.Header, method string) {
	h.Set("Accept", "application/pkcs7-mime")
	if c.options.UserAgent != "" {
		h.Set("User-Agent", c.options.UserAgent)
	}
	if method == http.MethodPost {
		h.Set("Content-Type", "application/pkcs10")
		h.Set("Content-Transfer-Encoding", "base64") // see the package documentation
	}
	if c.options.Username != "" || c.options.Password != "" {
		h.Set("Authorization", "Basic "+basic(c.options.Username, c.options.Password))
	}
	if c.options.Secret != "" {
		h.Set("Secret-Value", c.options.Secret)
	}
}

// basic is the credentials of RFC 7617, section 2.
func basic(username, password string) string {
	if username == "" && password == "" {
		return ""
	}
	return base64.StdEncoding.EncodeToString([]byte(username + ":" + password))
}

// checkType says why an answer 200 is none with certificates.
func checkType(header http.Header, body []byte) error {
	kind, parameters, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) || kind != "application/pkcs7-mime" {
		return fmt.Errorf("its content type is %q, and not application/pkcs7-mime", printable(header.Get("Content-Type")))
	}
	if t := parameters["smime-type"]; t != "" && !strings.EqualFold(t, "certs-only") {
		return fmt.Errorf("its smime-type is %q, and not certs-only", printable(t))
	}
	if len(body) > maxBody {
		return fmt.Errorf("it has more than %d bytes", maxBody)
	}
	return nil
}

func mediaType(header http.Header) string {
	kind, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	return kind
}

// encode writes base64 in lines of 64 characters: RFC 8951 takes any, and OpenSSL, which many servers hand it to,
// reads no longer ones.
func encode(der []byte) []byte {
	text := base64.StdEncoding.EncodeToString(der)
	var b bytes.Buffer
	for len(text) > 0 {
		n := min(len(text), 64)
		b.WriteString(text[:n] + "\n")
		text = text[n:]
	}
	return b.Bytes()
}
