// Package sas makes shared access signatures, the tokens by which Azure's IoT services know who has the key of a
// shared access policy:
//
//	SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={policy}
//
// The resource is the host name of the service, percent-encoded; expiry is in seconds since 1970; the signature is the
// base64 of HMAC-SHA256 over resource, a line feed and expiry, with the decoded key of the policy.
package sas

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"strconv"
	"time"
)

// Key is one of a shared access policy. It is printed as the policy's name, never as its value.
type Key struct {
	Policy string
	value  []byte
}

// NewKey reads a key as Azure writes it: in base64.
func NewKey(policy, value string) (Key, error) {
	raw, err := base64.StdEncoding.DecodeString(value)
	if err != nil || len(raw) == 0 || policy == "" {
		// The error of the decoder would show where in the key it stopped.
		return Key{}, errors.New("the key of the shared access policy is no base64")
	}
	return Key{policy, raw}, nil
}

func (k Key) String() string   { return "key of " + k.Policy }
func (k Key) GoString() string { return k.String() }

// Token is good for requests to host until the expiry, to which the other side's clock is compared.
func (k Key) Token(host string, expiry time.Time) string {
	resource, end := url.QueryEscape(host), strconv.FormatInt(expiry.Unix(), 10)
	mac := hmac.New(sha256.New, k.value)
	mac.Write([]byte(resource + "\n" + end))
	signature := base64.StdEncoding.EncodeToString(mac.Sum(nil))
	return "SharedAccessSignature sr=" + resource + "&sig=" + url.QueryEscape(signature) + "&se=" + end + "&skn=" + url.QueryEscape(k.Policy)
}
