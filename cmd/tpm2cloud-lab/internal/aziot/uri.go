package aziot

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"
)

// TokenURI is a PKCS#11 URI (RFC 7512) as aziot-keyd reads it: it knows four attributes and drops
// all others without a word, also pin-source.
type TokenURI struct {
	Token  string // label; not used if HasSlot
	Slot   uint64
	Object string // label; empty: the first key of the token
	PIN    string

	HasSlot, HasObject, HasPIN bool
}

// ParseTokenURI reads a PKCS#11 URI.
func ParseTokenURI(s string) (TokenURI, error) {
	var u TokenURI
	rest, ok := strings.CutPrefix(s, "pkcs11:")
	if !ok {
		return u, errors.New("PKCS#11 URI lacks the scheme pkcs11")
	}
	// What follows a second question mark belongs to nothing.
	parts := strings.Split(rest, "?")
	hasToken := false
	err := eachAttribute(parts[0], ";", func(key, value string) (err error) {
		switch key {
		case "token":
			u.Token, hasToken = value, true
		case "object":
			u.Object, u.HasObject = value, true
		case "slot-id":
			u.HasSlot = true
			u.Slot, err = strconv.ParseUint(value, 10, 64)
		}
		return err
	})
	if err == nil && len(parts) > 1 {
		err = eachAttribute(parts[1], "&", func(key, value string) error {
			if key == "pin-value" {
				u.PIN, u.HasPIN = value, true
			}
			return nil
		})
	}
	if err != nil {
		return u, fmt.Errorf("PKCS#11 URI: %w", err)
	}
	if !hasToken && !u.HasSlot {
		return u, errors.New("PKCS#11 URI has neither token nor slot-id")
	}
	return u, nil
}

// eachAttribute splits key=value pairs and decodes both sides. Only the values of keys that matter
// must be text.
func eachAttribute(s, separator string, do func(key, value string) error) error {
	for pair := range strings.SplitSeq(s, separator) {
		key, value, _ := strings.Cut(pair, "=")
		switch key = percentDecode(key); key {
		case "token", "object", "slot-id", "pin-value":
		default:
			continue
		}
		value = percentDecode(value)
		if !utf8.ValidString(value) {
			return fmt.Errorf("%s is not UTF-8", key)
		}
		if err := do(key, value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// percentDecode leaves alone what is no valid escape, as the real one does. (url.PathUnescape
// refuses it.) A plus sign is a plus sign.
func percentDecode(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// String is the form that apply writes: every byte that is no letter or digit is escaped.
func (u TokenURI) String() string {
	s := "pkcs11:token=" + percentEncode(u.Token)
	if u.HasSlot {
		s = "pkcs11:slot-id=" + strconv.FormatUint(u.Slot, 10)
	}
	if u.HasObject {
		s += ";object=" + percentEncode(u.Object)
	}
	if u.HasPIN {
		s += "?pin-value=" + percentEncode(u.PIN)
	}
	return s
}

func percentEncode(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// KeyLocation is where a private key is: in a file or, if Token is set, in a PKCS#11 token.
type KeyLocation struct {
	File  string
	Token *TokenURI
}

// ParseKeyLocation reads a file: or pkcs11: URI.
func ParseKeyLocation(s string) (KeyLocation, error) {
	scheme, _, ok := strings.Cut(s, ":")
	switch {
	case !ok:
		return KeyLocation{}, fmt.Errorf("key location %q has no scheme", s)
	case scheme == "file":
		path, err := FilePath(s)
		return KeyLocation{File: path}, err
	case scheme == "pkcs11":
		u, err := ParseTokenURI(s)
		return KeyLocation{Token: &u}, err
	}
	return KeyLocation{}, fmt.Errorf("key location has the unknown scheme %q", scheme)
}

// String is the URI that apply writes.
func (l KeyLocation) String() string {
	if l.Token != nil {
		return l.Token.String()
	}
	return (&url.URL{Scheme: "file", Path: l.File}).String()
}

// FilePath returns the path of a file: URL.
func FilePath(s string) (string, error) {
	u, err := parseURL(s)
	if err != nil {
		return "", err
	}
	// In file://etc/x.pem, "etc" is a host: the classic slip of one slash too few.
	if u.Scheme != "file" || u.Host != "" && u.Host != "localhost" || !strings.HasPrefix(u.Path, "/") {
		return "", fmt.Errorf("%q is not file:// and an absolute path", s)
	}
	return u.Path, nil
}

// parseURL reads an absolute URL.
func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "" {
		return nil, fmt.Errorf("URL %q is relative", s)
	}
	if u.Path == "" && (u.Scheme == "http" || u.Scheme == "https") {
		u.Path = "/" // the one form of it that is written
	}
	return u, nil
}
