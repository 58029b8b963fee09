package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Program is one of the programs that a configuration is checked for.
type Program string

const (
	ProgramIDevID Program = "tpm2cloud-idevid"
	ProgramLDevID Program = "tpm2cloud-ldevid"
	ProgramEdge   Program = "tpm2cloud-edgecfg"
)

// Check says whether c has all that one program needs. It is apart from
// [Load], which judges only what is there: a board that gets nothing but its
// IDevID needs no [edge].
func (c *Config) Check(p Program) error {
	var problems []error
	refuse := func(key, format string, args ...any) {
		problems = append(problems, c.at.problem(key, fmt.Errorf(format, args...)))
	}
	fields := schema(c)
	need := func(table, method string, names ...string) {
		for _, name := range names {
			if key := dotted(table, name); fields.at[key].IsZero() {
				refuse(key, "it is not set; method %q needs it", method)
			}
		}
	}

	switch p {
	case ProgramIDevID:
		if c.EK.Verify != VerifyOff && len(c.EK.Trust) == 0 {
			refuse("ek.trust", "it is empty; ek.verify = %q needs the vendors' CA certificates", c.EK.Verify)
		}
		if m := c.IDevID.Enroll.Method; m == MethodMTLS {
			refuse("idevid.enroll.method", "%q is not allowed here, because it needs an identity and this is the first; allowed: %q, %q, %q",
				m, MethodCA, MethodSecret, MethodBasic)
		} else {
			need("idevid.enroll", string(m), enrollNeeds(m)...)
		}
	case ProgramLDevID:
		m := c.LDevID.Enroll.Method
		need("ldevid.enroll", string(m), enrollNeeds(m)...)
	case ProgramEdge:
		m := c.Edge.Method
		need("edge", string(m), "id_scope")
		switch m {
		case EdgeBasic:
			need("edge.est", string(m), "server", "username", "password")
		case EdgeMTLS:
			need("edge.est", string(m), "server")
		}
	}
	return join(problems)
}

// enrollNeeds are the keys that a method cannot do without.
func enrollNeeds(m Method) []string {
	switch m {
	case MethodCA:
		return []string{"ca_certificate", "ca_key"}
	case MethodSecret:
		return []string{"server", "secret"}
	case MethodBasic:
		return []string{"server", "username", "password"}
	}
	return []string{"server"}
}

// rules judge the values of the strings whose types do not judge themselves.
var rules = map[string]func(string) error{
	"run.state":  absolute,
	"tpm.device": tpmDevice,

	"device.model":  optional(text),
	"device.serial": optional(text),
	"device.mac":    optional(mac),

	"ek.trust": absolute, // each of them

	"idevid.common_name":           namePattern,
	"idevid.serial_number":         optional(namePattern),
	"idevid.organization":          optional(namePattern),
	"idevid.enroll.server":         optional(server),
	"idevid.enroll.label":          optional(label),
	"idevid.enroll.server_ca":      serverCA,
	"idevid.enroll.proxy":          optional(proxy),
	"idevid.enroll.username":       optional(username),
	"idevid.enroll.ca_certificate": optional(absolute),
	"idevid.enroll.ca_key":         optional(absolute),

	"ldevid.common_name":           namePattern,
	"ldevid.serial_number":         optional(namePattern),
	"ldevid.organization":          optional(namePattern),
	"ldevid.idevid_ca":             optional(absolute),
	"ldevid.idevid_common_name":    optional(namePattern),
	"ldevid.enroll.server":         optional(server),
	"ldevid.enroll.label":          optional(label),
	"ldevid.enroll.server_ca":      serverCA,
	"ldevid.enroll.proxy":          optional(proxy),
	"ldevid.enroll.username":       optional(username),
	"ldevid.enroll.ca_certificate": optional(absolute),
	"ldevid.enroll.ca_key":         optional(absolute),

	"ldevid.token.label":  tokenLabel,
	"ldevid.token.key":    text,
	"ldevid.token.store":  absolute,
	"ldevid.token.module": optional(absolute),

	"edge.id_scope":        optional(idScope),
	"edge.global_endpoint": endpoint,
	"edge.device_id":       optional(deviceID),
	"edge.hostname":        optional(hostname),
	"edge.est.server":      optional(server),
	"edge.est.label":       optional(label),
	"edge.est.server_ca":   serverCA,
	"edge.est.username":    optional(username),
}

// validate judges every value, whoever it is for.
func (c *Config) validate() []error {
	var problems []error
	judge := func(key string, err error) {
		if err != nil {
			problems = append(problems, c.at.problem(key, err))
		}
	}
	fields := schema(c)
	for _, key := range fields.keys {
		f, rule := fields.at[key], rules[key]
		switch {
		case f.Kind() == reflect.Int: // days are the only integers
			judge(key, days(f.Int()))
		case rule != nil && f.Kind() == reflect.String:
			judge(key, rule(f.String()))
		case rule != nil:
			for _, v := range f.Seq2() {
				judge(key, rule(v.String()))
			}
		}
	}
	c.validateWipe(fields, judge)
	return problems
}

// validateWipe judges whether a secret that is to be removed is there for its
// enrolment alone. What both enrolments use is removed after both.
func (c *Config) validateWipe(fields fields, judge func(string, error)) {
	type wiped struct{ table, key, file string }
	var all []wiped
	for _, e := range []struct {
		table string
		Enroll
	}{{"idevid.enroll", c.IDevID.Enroll}, {"ldevid.enroll", c.LDevID.Enroll}} {
		if !e.WipeSecret {
			continue
		}
		key, named := e.SecretKey()
		if key == "" {
			judge(dotted(e.table, "wipe_secret"), fmt.Errorf("true is not allowed here: method %q has no secret", e.Method))
			continue
		}
		all = append(all, wiped{e.table, dotted(e.table, key), string(named)})
	}
	for _, key := range fields.keys {
		f := fields.at[key]
		names := f.Kind() == reflect.String && f.String() != "" && (f.Type() == reflect.TypeFor[Secret]() || strings.HasSuffix(key, ".ca_key"))
		if !names || slices.ContainsFunc(all, func(w wiped) bool { return w.key == key }) {
			continue
		}
		for _, w := range all {
			if w.file == f.String() {
				judge(dotted(w.table, "wipe_secret"), fmt.Errorf("true is not allowed here: %s names the secret of %s too, and would miss it; give it one of its own, or take that key out", key, w.key))
			}
		}
	}
}

// days are at most a century: more is a slip of the hand.
func days(n int64) error {
	if n < 0 || n > 36500 {
		return fmt.Errorf("%d is not allowed here; allowed: 0 to 36500", n)
	}
	return nil
}

// optional lets a string be empty, which means that the key is not set.
func optional(rule func(string) error) func(string) error {
	return func(s string) error {
		if s == "" {
			return nil
		}
		return rule(s)
	}
}

// notAllowed repeats the value, unless a user and a password may be in it.
func notAllowed(s, allowed string) error {
	if strings.Contains(s, "@") {
		return fmt.Errorf("this is not allowed here; allowed: %s", allowed)
	}
	return fmt.Errorf("%q is not allowed here; allowed: %s", s, allowed)
}

// text is anything that can stand in one line.
func text(s string) error {
	if strings.TrimSpace(s) == "" || strings.ContainsFunc(s, unicode.IsControl) {
		return notAllowed(s, "a text of one line")
	}
	return nil
}

func absolute(s string) error {
	if !filepath.IsAbs(s) || text(s) != nil {
		return notAllowed(s, "an absolute path")
	}
	return nil
}

func tpmDevice(s string) error {
	if absolute(strings.TrimPrefix(s, "unix:")) != nil {
		return notAllowed(s, `the absolute path of a device, or "unix:" and the absolute path of a socket`)
	}
	return nil
}

func mac(s string) error {
	if hw, err := net.ParseMAC(s); err != nil || len(hw) != 6 || !strings.Contains(s, ":") {
		return notAllowed(s, "six bytes, like 00:11:22:aa:bb:cc")
	}
	return nil
}

func namePattern(s string) error {
	if err := text(s); err != nil {
		return err
	}
	_, err := Expand(s, func(string) (string, error) { return "", nil })
	return err
}

// dnsName is a name by RFC 1123, or an IPv4 address.
var dnsName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?)*\.?$`)

func server(s string) error {
	bad := notAllowed(s, `"host" or "host:port", an IPv6 address in brackets`)
	switch {
	case strings.Contains(s, "://"):
		return fmt.Errorf("%w; without https://", bad)
	case strings.Contains(s, "/"):
		return fmt.Errorf("%w; the path is RFC 7030's own, only the label can be chosen", bad)
	}
	host := s
	if _, port, err := net.SplitHostPort(s); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return bad
		}
		host = strings.TrimSuffix(s, ":"+port)
	}
	if v6, ok := strings.CutPrefix(host, "["); ok {
		v6, closed := strings.CutSuffix(v6, "]")
		if ip, err := netip.ParseAddr(v6); !closed || err != nil || !ip.Is6() {
			return bad
		}
	} else if !dnsName.MatchString(host) {
		return bad
	}
	return nil
}

var labelForm = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// label is a segment of the path. RFC 7030 section 3.2.2 forbids the names of
// the operations.
func label(s string) error {
	operations := []string{"cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs"}
	if !labelForm.MatchString(s) || s == "." || s == ".." || slices.Contains(operations, s) {
		return notAllowed(s, "letters, digits and ._- and not the name of an EST operation")
	}
	return nil
}

func serverCA(s string) error {
	if s != SystemCA && absolute(s) != nil {
		return notAllowed(s, fmt.Sprintf("%q, or the absolute path of a PEM file", SystemCA))
	}
	return nil
}

func proxy(s string) error {
	u, err := url.Parse(s)
	switch {
	case strings.Contains(s, "@"):
		return errors.New("a user and a password are not allowed here, because everybody may read this file; allowed: http://host:port")
	case err != nil, u.Scheme != "http" && u.Scheme != "https", !bare(u):
		return notAllowed(s, "http://host:port or https://host:port")
	}
	return nil
}

// bare says that a URL has a host and nothing behind it.
func bare(u *url.URL) bool {
	return u.Hostname() != "" && u.User == nil && strings.Trim(u.Path, "/") == "" && u.RawQuery == "" && u.Fragment == ""
}

// username goes into an HTTP header, where RFC 7617 ends it at a colon. What
// stands behind one is likely a password, so the value is not repeated.
func username(s string) error {
	if text(s) != nil || strings.Contains(s, ":") {
		return errors.New("this is not allowed here; allowed: a text of one line without a colon")
	}
	return nil
}

// tokenLabel fits CK_TOKEN_INFO's label, which has 32 bytes.
func tokenLabel(s string) error {
	if text(s) != nil || len(s) > 32 {
		return notAllowed(s, "a text of 1 to 32 bytes")
	}
	return nil
}

var idScopeForm = regexp.MustCompile(`^[0-9A-Za-z]{4,32}$`)

func idScope(s string) error {
	if !idScopeForm.MatchString(s) {
		return notAllowed(s, "the ID scope of the DPS instance, like 0ne00AAAAAA")
	}
	return nil
}

func endpoint(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || !bare(u) {
		return notAllowed(s, "https://host, with a port where it is not 443")
	}
	return nil
}

// What DPS takes as a registration id and Azure IoT Edge as a file name, cut
// to the 64 letters of a common name.
var deviceIDForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$`)

func deviceID(s string) error {
	if !deviceIDForm.MatchString(s) {
		return notAllowed(s, "1 to 64 lower-case letters, digits and ._- (those not at the ends)")
	}
	return nil
}

// RFC 1035 section 2.3.1. A longer name than 64 letters fits no common name.
var hostnameForm = regexp.MustCompile(`^[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)

func hostname(s string) error {
	if len(s) > 64 || !hostnameForm.MatchString(s) {
		return notAllowed(s, "a host name by RFC 1035 of at most 64 letters")
	}
	return nil
}
