package report

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"
)

const (
	password = `p4ss "w/rd" & ünï%`
	pin      = "00112233445566778899aabbccddeeff"
)

func TestText(t *testing.T) {
	s := NewScrubber([]string{password + "\n", pin, "", pin[:16]}, nil)
	basic := func(user string) string { return base64.StdEncoding.EncodeToString([]byte(user + ":" + pin)) }
	for _, text := range []string{
		password, pin, "x" + pin + "y" + pin, url.QueryEscape(password), url.PathEscape(password), percentAll(password), strings.ToLower(percentAll(password)),
		hex.EncodeToString([]byte(pin)), strings.ToUpper(hex.EncodeToString([]byte(password))),
		base64.StdEncoding.EncodeToString([]byte(password)), base64.RawURLEncoding.EncodeToString([]byte(password)),
		basic("u"), basic("us"), basic("use"), basic("user"), `{"p":"p4ss \"w/rd\" \u0026 ünï%"}`,
		"pkcs11:token=edge?pin-value=unknown-pin", "https://user:unknown@proxy.example:3128/", "Authorization: Basic dW5rbm93bjp1bmtub3du",
	} {
		got := string(s.Text([]byte(text)))
		for _, secret := range []string{"p4ss", pin, "unknown", hex.EncodeToString([]byte(pin))[8:24], "dW5rbm93bjp1bmtub3du", base64.StdEncoding.EncodeToString([]byte(pin))[8:24]} {
			if strings.Contains(strings.ToLower(got), strings.ToLower(secret)) {
				t.Errorf("%q became %q, in which %q stands", text, got, secret)
			}
		}
		if !strings.Contains(got, blot) {
			t.Errorf("%q became %q", text, got)
		}
	}
	for _, text := range []string{"", "nothing to hide", "https://est.example:443/.well-known/est", "pkcs11:token=edge;object=ldevid"} {
		if got := string(s.Text([]byte(text))); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestConfiguration(t *testing.T) {
	s := NewScrubber(nil, []string{"est-password"})
	for text, want := range map[string]string{
		"password = \"est-password\"\n":                            "password = \"est-password\"\n",
		"password = \"hunter2\"\n":                                 "password = ***\n",
		"  password='hunter2' # note\nserver = \"a\"\n":            "  password=***\nserver = \"a\"\n",
		"\"password\" = \"hunter2\"":                               "\"password\" = ***\n",
		"idevid.enroll.password = \"hunter2\"\n":                   "idevid.enroll.password = ***\n",
		"enroll = { method = \"est-ba\", secret = \"hunter2\" }\n": "enroll = { method = \"est-ba\", secret = ***\n",
		"owner_auth = \"hunter2\"\n":                               "owner_auth = ***\n",
		"password = \"\"\"\nhunter2\nmore\n\"\"\"\nx = 1\n":        "password = ***\nx = 1\n",
		"password = \"\"\"hunter2\"\"\"\nx = 1\n":                  "password = ***\nx = 1\n",
		"#password = \"hunter2\"\n":                                "#password = ***\n",
		"#password = \"\"\n":                                       "#password = \"\"\n",
		"password = hunter2\n":                                     "password = ***\n",
		"method = \"est-secret\"\n":                                "method = \"est-secret\"\n",
	} {
		if got := string(s.Configuration([]byte(text))); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

func TestValues(t *testing.T) {
	got := strings.Join(Values([]byte("identity_pk = \"pkcs11:token=e;object=l?pin-value=a%20b\"\npassword = \"hunter2\"\nid = 1\n")), "|")
	if got != "a%20b|a b|hunter2" {
		t.Errorf("%q", got)
	}
}

// Whatever is put into a bundle, and wherever the secret stands in it: in a text,
// in a name, in the reason why something is missing.
func TestBundle(t *testing.T) {
	b := New(NewScrubber([]string{pin}, nil))
	b.Add("a-"+pin, []byte("x "+pin), nil)
	b.Add("missing", nil, errors.New("cannot: "+pin))
	b.AddConfiguration("c.toml", []byte("password = \"hunter2\"\n"), nil)
	b.Add("long", bytes.Repeat([]byte("0123456789"), maxEntry/10+1), nil)
	var out bytes.Buffer
	if err := b.Write(&out, "folder", "head "+pin, time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil || len(data) > maxEntry {
			t.Errorf("%s has %d bytes, %v", h.Name, len(data), err)
		}
		if strings.Contains(h.Name+string(data), pin) || strings.Contains(string(data), "hunter2") {
			t.Errorf("a secret stands in %s", h.Name)
		}
		names = append(names, h.Name)
	}
	if got := strings.Join(names, " "); got != "folder/report.txt folder/a-*** folder/c.toml folder/long" {
		t.Errorf("%s", got)
	}
}

// No text makes the scrubber fail or leave a secret.
func FuzzText(f *testing.F) {
	f.Add("x", pin)
	f.Add(`password = """`, "a")
	f.Fuzz(func(t *testing.T, text, secret string) {
		if strings.TrimSpace(secret) == "" || strings.Contains(secret, "*") {
			return // what the blot makes anew
		}
		s := NewScrubber([]string{secret}, nil)
		data := append(append([]byte(text), secret...), text...)
		if got := s.Text(s.Configuration(data)); bytes.Contains(got, []byte(strings.TrimSpace(secret))) {
			t.Errorf("%q became %q", data, got)
		}
	})
}
