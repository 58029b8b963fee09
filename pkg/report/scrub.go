package report

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// blot stands in the place of a secret.
const blot = "***"

// Scrubber takes secrets out of texts.
type Scrubber struct {
	forms []string        // of the secrets, the longest first
	names map[string]bool // of credentials: what may stand in a secret's place
}

// NewScrubber knows secrets by their values, and by their names those that a
// configuration may refer to.
func NewScrubber(secrets, names []string) *Scrubber {
	s := &Scrubber{names: map[string]bool{}}
	for _, name := range names {
		s.names[name] = true
	}
	s.Learn(secrets...)
	return s
}

// Learn adds secrets.
func (s *Scrubber) Learn(secrets ...string) {
	for _, secret := range secrets {
		if secret = strings.TrimSpace(secret); secret != "" {
			s.forms = append(s.forms, forms(secret)...)
		}
	}
	// One that begins like another must not leave the other's end behind.
	slices.SortFunc(s.forms, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	s.forms = slices.Compact(s.forms)
}

// forms are the ways in which programs write a secret.
func forms(secret string) []string {
	list := []string{
		secret,
		url.QueryEscape(secret), url.PathEscape(secret), percentAll(secret), strings.ToLower(percentAll(secret)),
		hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret))),
	}
	for _, e := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding} {
		list = append(list, e.EncodeToString([]byte(secret)))
		// In the middle of something longer ("user:password" of HTTP Basic) base64 has
		// three ways to write it; what only its own bytes decide is the same in each.
		for shift := 1; shift <= 2; shift++ {
			text := e.EncodeToString(append(make([]byte, shift), secret...))
			inner := strings.TrimRight(text, "=")[shift+1:]
			if cut := (shift + len(secret)) % 3; cut != 0 && len(inner) > 1 {
				inner = inner[:len(inner)-1]
			}
			if len(inner) >= 8 {
				list = append(list, inner)
			}
		}
	}
	if quoted, err := json.Marshal(secret); err == nil {
		list = append(list, strings.Trim(string(quoted), `"`))
	}
	return list
}

// percentAll escapes all but letters and digits, as the agent does it in a
// PKCS#11 URI.
func percentAll(s string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		}
	}
	return b.String()
}

// structural is what stands in a secret's place in any text: the PIN of a
// PKCS#11 URI, and what a URL has before its host.
var structural = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`(?i)(pin-value=)[^"'&;,\s]*`), "${1}" + blot},
	{regexp.MustCompile(`(?i)([a-z][a-z0-9+.-]*://)[^/@\s"']*@`), "${1}" + blot + "@"},
	{regexp.MustCompile(`(?i)(authorization:\s*\w+\s+)\S+`), "${1}" + blot},
}

// Text takes secrets out of a text.
func (s *Scrubber) Text(data []byte) []byte {
	for _, p := range structural {
		data = p.pattern.ReplaceAll(data, []byte(p.with))
	}
	for _, form := range s.forms {
		data = bytes.ReplaceAll(data, []byte(form), []byte(blot))
	}
	return data
}

func (s *Scrubber) name(name string) string { return string(s.Text([]byte(name))) }

// secretKey begins a secret in a TOML file, wherever in the line.
var secretKey = regexp.MustCompile(`(?i)["']?\b[\w-]*(?:password|passwd|secret|pin|[_-]auth|token_key|sas|connection_string)["']?\s*=\s*`)

// Configuration takes out of a TOML file whatever stands in a secret's place,
// from there to the end of its line or of its lines; only the name of a
// credential stays. The file may be broken: it is not parsed.
func (s *Scrubber) Configuration(data []byte) []byte {
	var out strings.Builder
	end := "" // of a string of several lines that is being left out
	for line := range strings.Lines(string(data)) {
		if end != "" {
			if strings.Contains(line, end) {
				end = ""
			}
			continue
		}
		at := secretKey.FindStringIndex(line)
		if at == nil || strings.HasPrefix(strings.TrimSpace(line), "#") && s.commented(line[at[1]:]) {
			out.WriteString(line)
			continue
		}
		value := strings.TrimSpace(line[at[1]:])
		if s.names[strings.Trim(value, `"'`)] {
			out.WriteString(line)
			continue
		}
		for _, quotes := range []string{`"""`, `'''`} {
			if strings.Count(value, quotes) == 1 {
				end = quotes
			}
		}
		out.WriteString(line[:at[1]] + blot + "\n")
	}
	return []byte(out.String())
}

// commented says whether a value in a comment is one of the examples that come
// with the packages: empty.
func (s *Scrubber) commented(value string) bool {
	return strings.Trim(strings.TrimSpace(value), `"'`) == ""
}

// Values are what stands in the secrets' places of the agent's configuration, so
// that they are known elsewhere as well.
func Values(configuration []byte) (list []string) {
	for _, m := range regexp.MustCompile(`pin-value=([^"'&;,\s]*)`).FindAllSubmatch(configuration, -1) {
		list = append(list, string(m[1]))
		if plain, err := url.PathUnescape(string(m[1])); err == nil {
			list = append(list, plain)
		}
	}
	for line := range strings.Lines(string(configuration)) {
		if at := secretKey.FindStringIndex(line); at != nil {
			value := strings.TrimSpace(line[at[1]:])
			if n := len(value); n > 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
				list = append(list, value[1:n-1])
			}
		}
	}
	return list
}
