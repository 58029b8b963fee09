package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/limit"
)

func FuzzLoad(f *testing.F) {
	data, err := os.ReadFile(conffile)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("[[run]]\nstate={a=[1,{b=2}]}\n\"a.b\".c=1979-05-27\n[run.state.x]"))
	f.Add([]byte("run.state.a = 'x'\n[idevid]\nenroll = {days=0x7fffffffffffffff, method=\"ca\"}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		defer limit.Time(t, 5*time.Second)()
		c := Default()
		c.at = positions{main: "f", set: map[string]position{}}
		problems := append(c.merge("f", data), c.validate()...)
		for _, p := range problems {
			if e, ok := p.(*Error); !ok || e.Line < 0 || e.Error() == "" {
				t.Errorf("%#v", p)
			}
		}
		if len(problems) > 0 {
			return
		}
		for _, p := range []Program{ProgramIDevID, ProgramLDevID, ProgramEdge} {
			_ = c.Check(p)
		}
	})
}

// FuzzSecret: the file of a credential is one line that is used as it is, or an error that has nothing of
// it in it.
func FuzzSecret(f *testing.F) {
	f.Add([]byte("correct horse\n"))
	f.Add([]byte("two\nlines\n"))
	f.Add([]byte("\x00"))
	f.Add([]byte("\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		defer limit.Time(t, 5*time.Second)()
		c := Default()
		c.root = t.TempDir()
		if err := os.WriteFile(filepath.Join(c.root, "secret"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		value, err := c.ReadSecret("/secret")
		if err == nil {
			if value == "" || len(value) > maxSecret || strings.ContainsAny(value, "\r\n\x00") || value != strings.TrimSuffix(string(data), "\n") {
				t.Errorf("%q was read as %q", data, value)
			}
			return
		}
		if value != "" || step.ClassOf(err) != step.Configuration {
			t.Errorf("class %d, %q and %v", step.ClassOf(err), value, err)
		}
		if said := err.Error() + step.HintOf(err); len(data) > 8 && strings.Contains(said, string(data)) {
			t.Errorf("%q is in %q", data, said)
		}
	})
}

// FuzzExpand: a pattern asks for the values of its placeholders, and of these only, and nothing of a
// value is taken for a placeholder.
func FuzzExpand(f *testing.F) {
	f.Add("board-{serial}", "{model}")
	f.Add("{serial}{mac}}", "x")
	f.Add("{", "")
	f.Fuzz(func(t *testing.T, pattern, value string) {
		defer limit.Time(t, 5*time.Second)()
		asked := 0
		got, err := Expand(pattern, func(string) (string, error) { asked++; return value, nil })
		if err != nil {
			if step.ClassOf(err) != step.Configuration {
				t.Errorf("%q: class %d: %v", pattern, step.ClassOf(err), err)
			}
			return
		}
		plain := pattern
		for _, p := range Placeholders() {
			plain = strings.ReplaceAll(plain, "{"+p+"}", "")
		}
		if len(got) != len(plain)+asked*len(value) || asked != strings.Count(pattern, "{") {
			t.Errorf("%q with %q became %q, after %d questions", pattern, value, got, asked)
		}
	})
}
