package config

import (
	"encoding"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Every string has a rule, or a type that judges it, and no rule is left over.
func TestRules(t *testing.T) {
	fields := schema(Default())
	seen := map[string]bool{}
	for _, key := range fields.keys {
		f := fields.at[key]
		_, itself := f.Addr().Interface().(encoding.TextUnmarshaler)
		switch k := f.Kind(); {
		case k == reflect.String && !itself, k == reflect.Slice:
			seen[key] = true
			if rules[key] == nil {
				t.Errorf("%s has no rule", key)
			}
		case k == reflect.Int && !strings.HasSuffix(key, ".days"):
			t.Errorf("%s would be judged as days", key)
		}
	}
	for key := range rules {
		if !seen[key] {
			t.Errorf("the rule for %s is for no key", key)
		}
	}
}

func TestValues(t *testing.T) {
	for key, tt := range map[string]struct{ good, bad []string }{
		"run.state":     {[]string{"/var/lib/tpm2cloud", "/a b"}, []string{"", "var", "./x", "/a\nb"}},
		"tpm.device":    {[]string{"/dev/tpm0", "unix:/run/tpm.sock"}, []string{"", "tpm0", "unix:tpm.sock", "tcp:localhost:2321"}},
		"device.mac":    {[]string{"", "00:11:22:AA:bb:cc"}, []string{"0011.22aa.bbcc", "00-11-22-aa-bb-cc", "00:11:22:aa:bb", "00:11:22:aa:bb:cc:dd:ee"}},
		"device.serial": {[]string{"", "1234"}, []string{" ", "a\tb"}},
		"idevid.common_name": {
			[]string{"{hash}", "dev-{serial}.{mac}", "{model}{machine-id}{ek}", "literal"},
			[]string{"", "{uuid}", "{serial", "serial}", "{}", "{{serial}}", "a\x00b"}},
		"idevid.enroll.server": {
			[]string{"", "est.example.com", "est.example.com.:8443", "10.0.0.1", "10.0.0.1:443", "[2001:db8::1]", "[2001:db8::1]:443", "est_1", "localhost:1"},
			[]string{"https://est.example.com", "est.example.com/label", "est:0", "est:65536", "est:", ":443", "est:https", "2001:db8::1", "[est]:443", "[::1", "-est", "est-.example.com", "a..b", "a b", "user@est"}},
		"idevid.enroll.label":     {[]string{"", "dev.1_x-Y"}, []string{"a/b", ".", "..", "simpleenroll", "a b", "ä"}},
		"idevid.enroll.server_ca": {[]string{"system", "/etc/ca.pem"}, []string{"", "System", "ca.pem"}},
		"idevid.enroll.proxy": {
			[]string{"", "http://proxy:3128", "https://[::1]:3128/"},
			[]string{"proxy:3128", "socks5://proxy", "http://", "http://user@proxy", "http://proxy/x", "http://proxy?x", "http://proxy#x"}},
		"idevid.enroll.username": {[]string{"", "jörg", "a b"}, []string{"a:b", "a\nb", " "}},
		"ldevid.token.label":     {[]string{"edge", strings.Repeat("x", 32)}, []string{"", strings.Repeat("x", 33), strings.Repeat("ü", 17), "a\x01"}},
		"ldevid.token.key":       {[]string{"ldevid"}, []string{"", "a\nb"}},
		"edge.id_scope":          {[]string{"", "0ne00AAAAAA", "0cn12345678"}, []string{"0ne", "0ne00/AAAA", "0ne00 AAAA"}},
		"edge.global_endpoint":   {[]string{"https://dps.example.com", "https://localhost:8443/"}, []string{"", "http://dps", "dps.example.com", "https://", "https://dps/x", "https://dps?x=1"}},
		"edge.device_id":         {[]string{"", "a", "100000003d1d1c36", "a.b_c-d", strings.Repeat("a", 64)}, []string{"A", "-a", "a-", "a:b", strings.Repeat("a", 65)}},
		"edge.hostname":          {[]string{"", "edge-1", "edge.example.com"}, []string{"1edge", "edge-", "edge_1", "a..b", strings.Repeat("a.", 33) + "a"}},
	} {
		for _, v := range tt.good {
			if err := rules[key](v); err != nil {
				t.Errorf("%s = %q: %v", key, v, err)
			}
		}
		for _, v := range tt.bad {
			if err := rules[key](v); err == nil {
				t.Errorf("%s = %q is allowed", key, v)
			}
		}
	}
	for n, good := range map[int64]bool{-1: false, 0: true, 36500: true, 36501: false} {
		if err := days(n); (err == nil) != good {
			t.Errorf("days = %d: %v", n, err)
		}
	}
}

func TestCheck(t *testing.T) {
	const est = "server = \"est\"\n"
	for _, tt := range []struct {
		name, text string
		program    Program
		want       []string
	}{
		{"nothing set", "", ProgramIDevID, []string{
			`idevid.enroll.server: it is not set; method "est-ba" needs it`,
			`idevid.enroll.username: it is not set; method "est-ba" needs it`,
			`idevid.enroll.password: it is not set; method "est-ba" needs it`}},
		{"empty", "[idevid.enroll]\n" + est + "username = \"\"\npassword = \"p\"", ProgramIDevID, []string{
			`line 3: idevid.enroll.username: it is not set; method "est-ba" needs it`}},
		{"est-ba", "[idevid.enroll]\n" + est + "username = \"u\"\npassword = \"p\"", ProgramIDevID, nil},
		{"est-secret", "[idevid.enroll]\nmethod = \"est-secret\"\n" + est, ProgramIDevID, []string{
			`idevid.enroll.secret: it is not set; method "est-secret" needs it`}},
		{"ca", "[idevid.enroll]\nmethod = \"ca\"", ProgramIDevID, []string{
			`idevid.enroll.ca_certificate: it is not set; method "ca" needs it`,
			`idevid.enroll.ca_key: it is not set; method "ca" needs it`}},
		{"first identity by mTLS", "[idevid.enroll]\nmethod = \"est-mtls\"\n" + est, ProgramIDevID, []string{
			`line 2: idevid.enroll.method: "est-mtls" is not allowed here, because it needs an identity and this is the first; allowed: "ca", "est-secret", "est-ba"`}},
		{"no roots", "[ek]\ntrust = []\n[idevid.enroll]\nmethod = \"est-secret\"\nsecret = \"s\"\n" + est, ProgramIDevID, []string{
			`line 2: ek.trust: it is empty; ek.verify = "require" needs the vendors' CA certificates`}},
		{"no roots needed", "[ek]\nverify = \"off\"\ntrust = []\n[idevid.enroll]\nmethod = \"est-secret\"\nsecret = \"s\"\n" + est, ProgramIDevID, nil},
		{"other programs' keys", "[edge]\nid_scope = \"0ne00AAAAAA\"\nmethod = \"dps\"", ProgramEdge, nil},
		{"est-mtls", "", ProgramLDevID, []string{
			`ldevid.enroll.server: it is not set; method "est-mtls" needs it`}},
		{"est-mtls set", "[ldevid.enroll]\n" + est, ProgramLDevID, nil},
		{"edge", "", ProgramEdge, []string{
			`edge.id_scope: it is not set; method "est-mtls" needs it`,
			`edge.est.server: it is not set; method "est-mtls" needs it`}},
		{"edge est-ba", "[edge]\nmethod = \"est-ba\"\nid_scope = \"0ne00AAAAAA\"\nest.server = \"est\"", ProgramEdge, []string{
			`edge.est.username: it is not set; method "est-ba" needs it`,
			`edge.est.password: it is not set; method "est-ba" needs it`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, problem := load(t, tt.text)
			if problem != "" {
				t.Fatal(problem)
			}
			err := c.Check(tt.program)
			var want strings.Builder
			for i, line := range tt.want {
				if i > 0 {
					want.WriteByte('\n')
				}
				want.WriteString("cannot use " + c.at.main + ": " + line)
			}
			got := ""
			if err != nil {
				got = err.Error()
				if step.ClassOf(err) != step.Configuration {
					t.Errorf("class %d", step.ClassOf(err))
				}
			}
			if d := cmp.Diff(want.String(), got); d != "" {
				t.Error(d)
			}
		})
	}
}
