package aziot

import (
	"reflect"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

func FuzzParseTokenURI(f *testing.F) {
	f.Add("pkcs11:token=a%20b;object=c?pin-value=%25")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseTokenURI(s)
		if err != nil {
			return
		}
		again, err := ParseTokenURI(u.String())
		if u.HasSlot {
			u.Token = "" // is not written
		}
		if err != nil || again != u {
			t.Errorf("%q: %+v is written as %s and read as %+v, %v", s, u, u, again, err)
		}
	})
}

// FuzzParseSuper: what is accepted of a config.toml becomes files that daemons can read, the same at
// each time.
func FuzzParseSuper(f *testing.F) {
	f.Add([]byte(provisioning + attestationDPS))
	f.Add([]byte(provisioning + attestationEST + certIssuance + authBasic))
	f.Add([]byte(provisioning + attestationEST + certIssuance + authMTLS))
	f.Add([]byte("[provisioning]\nsource = \"none\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSuper(data)
		if err != nil {
			return
		}
		d, err := Derive(s, true)
		if err != nil {
			return
		}
		again, err := Derive(s, true)
		if err != nil || !reflect.DeepEqual(again, d) {
			t.Errorf("derived twice: %v", err)
		}
		for _, file := range []any{d.Keyd, d.Certd, d.Identityd} {
			text, err := toml.Marshal(file)
			if err != nil {
				t.Fatalf("%+v cannot be written: %v", file, err)
			}
			var tree map[string]any
			if err := toml.Unmarshal(text, &tree); err != nil {
				t.Errorf("a daemon cannot read its file: %v\n%s", err, text)
			}
		}
	})
}

// FuzzDropin: variables of a drop-in are set as systemd would, or it is an error.
func FuzzDropin(f *testing.F) {
	f.Add("[Service]\nEnvironment=\"A=b c\" D=e\nEnvironment=\n")
	f.Add("[Service]\nEnvironment=A=\\\n b%%\n")
	f.Add("[Service]\nEnvironment='")
	f.Fuzz(func(t *testing.T, text string) {
		env := map[string]string{}
		if err := parseDropin(text, env); err != nil {
			return
		}
		for name, value := range env {
			if name == "" || strings.Contains(name, "=") || len(name)+len(value) > len(text) {
				t.Errorf("%q became %q = %q", text, name, value)
			}
		}
	})
}
