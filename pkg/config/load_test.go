package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// tree writes files below a new directory.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// load loads the one file's text, with the directory cut out of the error.
func load(t testing.TB, text string) (*Config, string) {
	t.Helper()
	dir := tree(t, map[string]string{"tpm2cloud.toml": text})
	c, err := Load(dir, "/")
	return c, message(dir, err)
}

func message(dir string, err error) string {
	if err == nil {
		return ""
	}
	return strings.ReplaceAll(err.Error(), dir+"/", "")
}

var ignore = cmpopts.IgnoreUnexported(Config{})

func TestLoadDefaults(t *testing.T) {
	c, err := load(t, "")
	if err != "" {
		t.Fatal(err)
	}
	if d := cmp.Diff(Default(), c, ignore); d != "" {
		t.Error(d)
	}
	if got := c.Path("/var/lib"); got != "/var/lib" {
		t.Errorf("Path = %q", got)
	}
}

func TestLoadDropIns(t *testing.T) {
	dir := tree(t, map[string]string{
		"tpm2cloud.toml":                "[run]\nbudget = \"1m\"\nstate = \"/a\"\n[ek]\ntrust = [\"/x\", \"/y\"]\n",
		"tpm2cloud.toml.d/20-b.toml":    "[run]\nstate = \"/c\"\n[ek]\ntrust = [\"/z\"]\n",
		"tpm2cloud.toml.d/10-a.toml":    "run.state = \"/b\"\nedge = { est = { server = \"est.example.com\" } }\n",
		"tpm2cloud.toml.d/.30.toml":     "this is not read",
		"tpm2cloud.toml.d/30.toml.save": "this neither",
	})
	c, err := Load(dir, "/mnt")
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Run.Budget, want.Run.State = Duration(time.Minute), "/c"
	want.EK.Trust = []string{"/z"}
	want.Edge.EST.Server = "est.example.com"
	if d := cmp.Diff(want, c, ignore); d != "" {
		t.Error(d)
	}
	if got := c.Path("/a"); got != "/mnt/a" {
		t.Errorf("Path = %q", got)
	}
	for key, want := range map[string]position{
		"run.budget":      {dir + "/tpm2cloud.toml", 2},
		"run.state":       {dir + "/tpm2cloud.toml.d/20-b.toml", 2},
		"edge.est.server": {dir + "/tpm2cloud.toml.d/10-a.toml", 2},
		"edge.id_scope":   {dir + "/tpm2cloud.toml", 0},
	} {
		if p := c.at.problem(key, nil); p.File != want.file || p.Line != want.line {
			t.Errorf("%s is at %s:%d, want %v", key, p.File, p.Line, want)
		}
	}
}

func TestLoadFiles(t *testing.T) {
	dir := tree(t, map[string]string{"tpm2cloud.toml.d/a.toml": "run.state = \"/b\""})
	if c, err := Load(dir, "/"); err != nil || c.Run.State != "/b" {
		t.Errorf("a drop-in alone: %v", err)
	}

	for name, dir := range map[string]string{
		"no directory":   "/nowhere/tpm2cloud",
		"no file":        t.TempDir(),
		"empty drop-ins": tree(t, map[string]string{"tpm2cloud.toml.d/README": ""}),
	} {
		_, err := Load(dir, "/")
		if !errors.Is(err, fs.ErrNotExist) || step.ClassOf(err) != step.Configuration || step.HintOf(err) == "" ||
			message(dir, err) != "cannot use tpm2cloud.toml: no such file or directory" {
			t.Errorf("%s: %v", name, err)
		}
	}

	_, err := Load(tree(t, map[string]string{"tpm2cloud.toml/x": ""}), "/")
	if step.ClassOf(err) != step.Configuration || !strings.HasSuffix(err.Error(), "/tpm2cloud.toml: is a directory") {
		t.Error(err)
	}
	if err := unreadable("/f", &fs.PathError{Op: "open", Path: "/f", Err: fs.ErrPermission}); step.ClassOf(err) != step.Permission ||
		err.Error() != "cannot use /f: permission denied" {
		t.Error(err)
	}
}

func TestLoadErrors(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"syntax", "[run]\nbudget = \n", `line 2: column 10: toml: unexpected character U+000A at start of value`},
		{"duplicate key", "[run]\nstate = \"/a\"\nstate = \"/b\"", `line 3: column 1: toml: key state is already defined`},
		{"not UTF-8", "[run]\nstate = \"\xff\"", `line 2: column 10: toml: invalid UTF-8 character in basic string`},
		{"spelling", "[idevid.enroll]\nsever = \"h\"", `line 2: idevid.enroll.sever: there is no such key; nearest: idevid.enroll.server`},
		{"other table", "[ldevid]\n\nstore = \"/h\"", `line 3: ldevid.store: there is no such key; nearest: ldevid.token.store`},
		{"no idea", "[device]\ncolour = 1", `line 2: device.colour: there is no such key; allowed in [device]: model, serial, mac`},
		{"table spelling", "[ldevids]\nkey = 1\n[ldevids.token]\nkey = 1", `line 1: ldevids: there is no such key; nearest: ldevid`},
		{"no such table", "[network]\nkey = 1", `line 1: network: there is no such key; allowed: [run], [tpm], [device], [ek], [idevid], [ldevid], [edge]`},
		{"inline", "run = { bugdet = \"1m\" }", `line 1: run.bugdet: there is no such key; nearest: run.budget`},
		{"key outside of its table", "budget = \"1m\"", `line 1: budget: there is no such key; nearest: run.budget`},
		{"dot in quotes", `"run.state" = "/x"`, `line 1: run.state: there is no such key; allowed: [run], [tpm], [device], [ek], [idevid], [ldevid], [edge]`},
		{"integer for string", "[run]\nbudget = 600", `line 2: run.budget: this is an integer; allowed: a string in quotes, "…"`},
		{"string for integer", "[idevid.enroll]\ndays = \"1\"", `line 2: idevid.enroll.days: this is a string; allowed: an integer`},
		{"float for integer", "[idevid.enroll]\ndays = 1.5", `line 2: idevid.enroll.days: this is a number with a point; allowed: an integer`},
		{"string for bool", "[ek]\nallow_expired = \"yes\"", `line 2: ek.allow_expired: this is a string; allowed: true or false`},
		{"string for list", "[ek]\ntrust = \"/x\"", `line 2: ek.trust: this is a string; allowed: a list of strings, ["…", "…"]`},
		{"list of integers", "[ek]\ntrust = [\n1]", `line 2: ek.trust: this list has an integer in it; allowed: a list of strings, ["…", "…"]`},
		{"date for string", "[run]\nstate = 1979-05-27", `line 2: run.state: this is a date or a time; allowed: a string in quotes, "…"`},
		{"bool for a secret", "[tpm]\nowner_auth = true", `line 2: tpm.owner_auth: this is true or false; allowed: a string in quotes, "…"`},
		{"value for table", "run = 5", `line 1: run: this is an integer; allowed: a table, [run]`},
		{"table for value", "[run.state]\na = 1\nb = 2", `line 1: run.state: this is a table; allowed: a string in quotes, "…"`},
		{"dotted table for value", "run.state.a = 1", `line 1: run.state: this is a table; allowed: a string in quotes, "…"`},
		{"inline table for value", "[run]\nstate = { a = 1 }", `line 2: run.state: this is a table; allowed: a string in quotes, "…"`},
		{"list of tables", "[[run]]\nstate = \"/x\"\n[[run]]\nstate = \"/y\"", `line 1: run: this is a list of tables; allowed: one table, [run]`},
		{"word", "[idevid.enroll]\nmethod = \"est\"", `line 2: idevid.enroll.method: "est" is not allowed here; allowed: "ca", "est-secret", "est-ba", "est-mtls"`},
		{"duration", "[run]\nbudget = \"-1m\"", `line 2: run.budget: "-1m" is not a time span above zero; allowed: like "90s", "10m", "1h30m"`},
		{"value", "[run]\nstate = \"var\"", `line 2: run.state: "var" is not allowed here; allowed: an absolute path`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.text)
			if want := "cannot use tpm2cloud.toml: " + tt.want; err != want {
				t.Errorf("got  %s\nwant %s", err, want)
			}
		})
	}
}

func TestLoadReportsEverything(t *testing.T) {
	dir := tree(t, map[string]string{
		"tpm2cloud.toml":          "[run]\nstat = \"/x\"\nbudget = 5\n[edge]\nid_scope = \"?\"\n",
		"tpm2cloud.toml.d/a.toml": "[",
		"tpm2cloud.toml.d/b.toml": "[ldevid.token]\nlabel = \"\"\n",
	})
	_, err := Load(dir, "/")
	want := `cannot use tpm2cloud.toml: line 2: run.stat: there is no such key; nearest: run.state
cannot use tpm2cloud.toml: line 3: run.budget: this is an integer; allowed: a string in quotes, "…"
cannot use tpm2cloud.toml.d/a.toml: line 1: column 1: toml: expected key but reached end of input
cannot use tpm2cloud.toml.d/b.toml: line 2: ldevid.token.label: "" is not allowed here; allowed: a text of 1 to 32 bytes
cannot use tpm2cloud.toml: line 5: edge.id_scope: "?" is not allowed here; allowed: the ID scope of the DPS instance, like 0ne00AAAAAA`
	if d := cmp.Diff(want, message(dir, err)); d != "" {
		t.Error(d)
	}
	if step.ClassOf(err) != step.Configuration || step.HintOf(err) == "" {
		t.Errorf("class %d, hint %q", step.ClassOf(err), step.HintOf(err))
	}
	if e, ok := errors.AsType[*Error](err); !ok || e.Key != "run.stat" || e.Line != 2 || e.File != dir+"/tpm2cloud.toml" {
		t.Errorf("%#v", e)
	}
}

// A password where the name of a secret belongs must not be told to the journal.
func TestLoadKeepsSecrets(t *testing.T) {
	const secret = "s3cr3t"
	for _, text := range []string{
		"[idevid.enroll]\npassword = \"" + secret + "!\"",
		"[idevid.enroll]\npassword = " + secret,
		"[idevid.enroll]\npassword = \"" + secret,
		"[idevid.enroll]\nproxy = \"http://user:" + secret + "@proxy\"",
		"[idevid.enroll]\nproxy = \"http://user:" + secret + "%@proxy\"",
		"[idevid.enroll]\nserver = \"https://user:" + secret + "@est\"",
		"[idevid.enroll]\nusername = \"user:" + secret + "\"",
		"[edge]\nglobal_endpoint = \"https://user:" + secret + "@dps\"",
	} {
		if _, err := load(t, text); err == "" || strings.Contains(err, secret) {
			t.Errorf("%s\n%s", text, err)
		}
	}
}

func TestTPMDevice(t *testing.T) {
	for device, want := range map[string][2]string{
		"/dev/tpmrm0":        {"/mnt/dev/tpmrm0", "device:/mnt/dev/tpmrm0"},
		"unix:/run/tpm.sock": {"unix:/mnt/run/tpm.sock", "swtpm:path=/mnt/run/tpm.sock"},
	} {
		c := &Config{TPM: TPM{Device: device}, root: "/mnt"}
		if got := [2]string{c.TPMDevice(), c.TCTI()}; got != want {
			t.Errorf("%s: %q", device, got)
		}
	}
}

// TestExamples: each example is complete for the programs that it is for, and no
// more.
func TestExamples(t *testing.T) {
	all := []Program{ProgramIDevID, ProgramLDevID, ProgramEdge}
	programs := map[string][]Program{
		"first-boot":                all,
		"factory-and-field/factory": {ProgramIDevID},
		"factory-and-field/field":   all,
		"air-gapped-bench":          {ProgramIDevID, ProgramLDevID},
	}
	const examples = "../../debian/examples"
	for name, has := range programs {
		c, err := Load(filepath.Join(examples, name), "/")
		if err != nil {
			t.Error(err)
			continue
		}
		for _, p := range all {
			if err := c.Check(p); (err == nil) != slices.Contains(has, p) {
				t.Errorf("%s, for %s: %v", name, p, err)
			}
		}
	}
	err := filepath.WalkDir(examples, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == dropInDir {
			name, _ := filepath.Rel(examples, filepath.Dir(path))
			if programs[name] == nil {
				t.Errorf("nobody checks the example %s", name)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

const conffile = "../../debian/tpm2cloud.toml"

func TestConffile(t *testing.T) {
	data, err := os.ReadFile(conffile)
	if err != nil {
		t.Fatal(err)
	}
	c, problem := load(t, string(data))
	if problem != "" {
		t.Fatalf("as it is: %s", problem)
	}
	if d := cmp.Diff(Default(), c, ignore); d != "" {
		t.Errorf("as it is it changes a default: %s", d)
	}

	all := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(string(data), "$1")
	c, problem = load(t, all)
	if problem != "" {
		t.Fatalf("with every line: %s", problem)
	}
	if d := cmp.Diff(Default(), c, ignore, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("a line shows another value than the default: %s", d)
	}
	fields := schema(c)
	for _, key := range fields.keys {
		if _, ok := c.at.set[key]; !ok && fields.at[key].Kind() != reflect.Struct {
			t.Errorf("%s is missing", key)
		}
	}
	for i, line := range strings.Split(string(data), "\n") {
		if len(line) > 100 {
			t.Errorf("line %d is too long for a terminal", i+1)
		}
	}
}
