package est

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// patience is for each of: connecting, the TLS handshake, and waiting for an answer to begin. A signature of a TPM
// is part of the handshake, and takes up to a second.
const patience = 30 * time.Second

func transport(o Options) *http.Transport {
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.Roots, Time: o.Time}
	if o.Certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return o.Certificate, nil
		}
	}
	return &http.Transport{
		Proxy:                  o.Proxy,
		DialContext:            (&net.Dialer{Timeout: patience}).DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    patience,
		ResponseHeaderTimeout:  patience,
		IdleConnTimeout:        patience,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
	}
}

// address is the host of the URL: the port is left out if it is 443, and an IPv6 address is in brackets.
func address(server string) (string, error) {
	if strings.Contains(server, "://") {
		return "", errors.New("it is a URL; only the host is wanted, or host:port")
	}
	host, port := strings.TrimSuffix(strings.TrimPrefix(server, "["), "]"), "443"
	if net.ParseIP(host) == nil && strings.Contains(server, ":") {
		var err error
		if host, port, err = net.SplitHostPort(server); err != nil {
			return "", errors.New("it is not host:port")
		}
	}
	// Whatever net/url would take for user, path or query.
	if host == "" || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`/\@?#%[]"<>`, r) }) {
		return "", errors.New("it has no valid host name")
	}
	if strings.Contains(host, ":") && net.ParseIP(host) == nil {
		return "", errors.New("it has no valid IPv6 address")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("its port %q is not a number from 1 to 65535", port)
	}
	if port != "443" {
		return net.JoinHostPort(host, port), nil
	}
	if strings.Contains(host, ":") {
		return "[" + host + "]", nil
	}
	return host, nil
}

// reserved are the operations of RFC 7030, section 3.2.2, which no label may be called.
var reserved = []string{"cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs"}

// checkLabel takes less than a URL could, so that nothing needs to be escaped, and nothing can leave the path.
func checkLabel(label string) error {
	for i, r := range label {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r)) {
			return fmt.Errorf("%q at position %d; allowed are letters, digits, '.', '_' and '-'", r, i+1)
		}
	}
	if label == "." || label == ".." {
		return errors.New("it is a step in the path")
	}
	if slices.Contains(reserved, label) {
		return errors.New("it is the name of an operation")
	}
	return nil
}
