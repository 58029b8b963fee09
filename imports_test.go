// Package tpm2cloud_test holds the rules of who may import what. They are what
// README.md says of the layout, in a form that fails when it stops being true;
// each rule has its reason, and the failure shows it.
//
// It reads the import clauses of all Go files, whatever their build tags, of
// this module and of the modules in its folders.
package tpm2cloud_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/tpm2cloud/tpm2cloud"

// The layers. Imports point from the first to the last: cmd wires programs,
// and programs are made of leaves, which are all the other packages.
var (
	commands = []string{"cmd/*"}
	programs = []string{"pkg/idevid", "pkg/ldevid", "pkg/edgecfg"}
	overview = []string{"pkg/check", "pkg/operator"} // of all three programs, for the operator's
	frame    = []string{"pkg/cli"}
	tools    = []string{"scripts/*", "image/*"} // run on a developer's machine, never on a device
	testkit  = []string{"pkg/testkit/*"}
)

// A rule forbids packages of this module to import others of it. Patterns are
// those of path.Match on folders.
type rule struct {
	from, except []string // who must not import, and who of them may
	not, but     []string // what, and what of that all the same
	tests        bool     // also what tests import
	why          string
}

var rules = []rule{
	{from: []string{"pkg/step"}, not: []string{"*/*", "*/*/*"}, why: "everybody imports step: what it imports, everybody would"},
	{from: []string{"pkg/devid", "pkg/ek", "pkg/est", "pkg/pss", "pkg/token"}, not: []string{"*/*", "*/*/*"}, but: []string{"pkg/pss"},
		why: "it is a protocol or a format of others, and of use without this project"},
	{from: []string{"pkg/idevid"}, not: []string{"pkg/ldevid", "pkg/edgecfg"}, why: noSharing},
	{from: []string{"pkg/ldevid"}, not: []string{"pkg/idevid", "pkg/edgecfg"}, why: noSharing},
	{from: []string{"pkg/edgecfg"}, not: []string{"pkg/idevid", "pkg/ldevid"}, why: noSharing},
	{from: []string{"pkg/*"}, except: frame, not: frame, why: "a program knows of no terminal: flags, tables and exit codes are cmd's and cli's"},
	{from: []string{"pkg/*"}, except: slices.Concat(programs, overview), not: programs, why: "imports point one way: cmd, then a program, then the leaves"},
	{from: []string{"pkg/*", "cmd/tpm2cloud-*"}, except: overview, not: overview, why: "who looks at all programs belongs to none of them"},
	{from: []string{"pkg/*", "pkg/*/*", "cmd/*"}, not: commands, tests: true, why: "cmd decides nothing, so there is nothing to import"},
	{from: []string{"cmd/*", "pkg/*", "pkg/*/*"}, not: tools, tests: true, why: "scripts are not part of what a device runs"},
	{from: []string{"cmd/*", "pkg/*", "scripts/*", "image/*"}, except: testkit, not: testkit,
		why: "doubles, and the programs that they start, must never be linked into a program"},
	{from: []string{"pkg/testkit/pki", "pkg/testkit/plain"}, not: []string{"*/*", "*/*/*"},
		why: "the tests inside of any package import it, and it would import that package back"},
}

const noSharing = "the programs meet on disk and in the TPM only, as their units do"

// A home is where a package that is not ours may be imported: folders, or
// single files. Tests and tools may import it anywhere.
type home struct {
	of, in []string
	why    string
}

var homes = []home{
	{[]string{"C", "github.com/miekg/pkcs11", "github.com/mattn/go-sqlite3"}, []string{"pkg/token"},
		"cgo is in one package, so that the programs without it are static and need no C compiler"},
	{[]string{"unsafe", "plugin", "syscall/js"}, nil, "nothing here needs it"},
	{[]string{"os/exec"}, []string{"pkg/edgecfg/apply.go", "pkg/systemd/unit.go", "pkg/check/sign.go"},
		"only the apply starts programs of others, and the operator's program systemctl, and itself as another user; " +
			"all else is done in the process, where no argument list shows a secret"},
	{[]string{"net/http"}, []string{"pkg/est", "pkg/enroll", "pkg/edgecfg", "pkg/check/servers.go"},
		"EST is the one protocol that a device speaks; edgecfg asks aziot's key service, and a check whether DPS is there"},
	{[]string{"github.com/google/go-tpm/tpm2"}, []string{"pkg/tpm", "pkg/idevid", "pkg/ldevid", "pkg/identity", "pkg/token", "cmd/tpm2cloud"},
		"the TPM's structures end where its keys and certificates begin"},
	{[]string{"github.com/google/go-tpm/tpm2/transport", "github.com/google/go-tpm/tpm2/transport/*"}, []string{"pkg/tpm"},
		"one place opens the TPM, retries and can be tapped by a test"},
	{[]string{"github.com/pelletier/go-toml/v2", "github.com/pelletier/go-toml/v2/*"}, []string{"pkg/config", "pkg/edgecfg"},
		"TOML is read in our configuration and in that of aziot"},
	{[]string{"github.com/google/renameio/v2"}, []string{"pkg/store"},
		"files are written in one place, which knows how to survive a power cut"},
	{[]string{"github.com/coreos/go-systemd/v22/*"}, []string{"pkg/systemd"}, "one place speaks with systemd"},
	{[]string{"flag"}, []string{"pkg/cli", "cmd/*"}, "a package has arguments, not flags"},
	{[]string{"log", "log/*"}, []string{"pkg/cli", "pkg/systemd"}, "what is said, and to whom, is decided in one place; all else returns errors"},
	{[]string{"math/rand", "math/rand/v2"}, nil, "keys, PINs, challenges and jitter come from crypto/rand"},
	{[]string{"testing", "testing/*"}, []string{"pkg/testkit/*"}, "no program has its tests in it"},
}

// file is a Go file of this repository.
type file struct {
	path, dir string // slash-separated, from the root of the repository
	test      bool
	tree      *ast.File
	imports   []string
}

func TestImports(t *testing.T) {
	for _, f := range goFiles(t) {
		if nestedModule(f.dir) != "" {
			continue // TestModules
		}
		for _, imported := range f.imports {
			for _, why := range breaks(f, imported) {
				t.Errorf("%s imports %s, and must not: %s", f.path, imported, why)
			}
		}
	}
}

// breaks gives the reasons of the rules that an import breaks.
func breaks(f file, imported string) (why []string) {
	if own, ok := strings.CutPrefix(imported, module+"/"); ok {
		for _, r := range rules {
			if (!f.test || r.tests) && matches(r.from, f.dir) && !matches(r.except, f.dir) && own != f.dir && matches(r.not, own) && !matches(r.but, own) {
				why = append(why, r.why)
			}
		}
		return why
	}
	if f.test || matches(tools, f.dir) || matches(testkit, f.dir) {
		return nil
	}
	for _, h := range homes {
		if matches(h.of, imported) && !matches(h.in, f.dir) && !matches(h.in, f.path) {
			why = append(why, h.why)
		}
	}
	return why
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, name)
		if err != nil {
			panic(err)
		}
		return ok
	})
}

// TestRulesHaveTeeth shows each kind of rule something that breaks it: a
// pattern with a slip of the hand in it would forbid nothing.
func TestRulesHaveTeeth(t *testing.T) {
	for _, c := range []struct {
		path, imported string
		test           bool
		broken         bool
	}{
		{"pkg/step/a.go", module + "/pkg/config", false, true},
		{"pkg/est/a.go", module + "/pkg/step", false, true},
		{"pkg/token/a.go", module + "/pkg/tpm", false, true},
		{"pkg/token/a.go", module + "/pkg/pss", false, false},
		{"pkg/idevid/a.go", module + "/pkg/ldevid", false, true},
		{"pkg/idevid/a.go", module + "/pkg/tpm", false, false},
		{"pkg/tpm/a.go", module + "/pkg/idevid", false, true},
		{"pkg/edgecfg/a.go", module + "/pkg/cli", false, true},
		{"cmd/tpm2cloud-idevid/main.go", module + "/pkg/cli", false, false},
		{"cmd/tpm2cloud-idevid/main.go", module + "/pkg/testkit/tpm", false, true},
		{"cmd/tpm2cloud-idevid/main_test.go", module + "/pkg/testkit/tpm", true, false},
		{"pkg/testkit/pki/a.go", module + "/pkg/devid", false, true},
		{"pkg/testkit/est/a.go", module + "/pkg/testkit/tpm", false, false},
		{"pkg/tpm/a.go", "github.com/miekg/pkcs11", false, true},
		{"pkg/edgecfg/apply.go", "os/exec", false, false},
		{"pkg/edgecfg/files.go", "os/exec", false, true},
		{"pkg/edgecfg/files_test.go", "os/exec", true, false},
		{"pkg/idevid/a.go", "github.com/google/go-tpm/tpm2/transport/linuxtpm", false, true},
		{"pkg/store/a.go", "math/rand/v2", false, true},
	} {
		f := file{path: c.path, dir: path.Dir(c.path), test: c.test}
		if why := breaks(f, c.imported); (len(why) > 0) != c.broken {
			t.Errorf("%s imports %s: broken rules %q, want any: %t", c.path, c.imported, why, c.broken)
		}
	}
}

// A guest is a module of this repository that may use some of the first one's
// packages.
type guest struct {
	module string
	use    []string
	tests  []string // in tests as well
	why    string
}

var guests = []guest{
	{"cmd/tpm2cloud-azure", []string{"pkg/est", "pkg/devid", "pkg/step", "pkg/store"}, []string{"pkg/config", "pkg/testkit/pki"},
		"it speaks EST and runs steps as a device does; none of these needs cgo or knows a TPM, and its tests have the devices' own reader of the configuration judge the file that it writes for them"},
}

// TestModules: the other modules of this repository are strangers to the first,
// unless they are guests.
func TestModules(t *testing.T) {
	for _, f := range goFiles(t) {
		for _, imported := range f.imports {
			if trespasses(f, nestedModule(f.dir), imported) {
				t.Errorf("%s imports %s, and must not: a server or a tool that shares code with the programs "+
					"shares their errors too, and its dependencies must not meet theirs", f.path, imported)
			}
		}
	}
}

// trespasses tells whether a file in a nested module imports what it may not.
func trespasses(f file, nested, imported string) bool {
	own, ok := strings.CutPrefix(imported, module+"/")
	if !ok || nested == "" || own == nested || strings.HasPrefix(own, nested+"/") {
		return false
	}
	for _, g := range guests {
		if g.module == nested && (matches(g.use, own) || f.test && matches(g.tests, own)) {
			return false
		}
	}
	return true
}

func TestModulesHaveTeeth(t *testing.T) {
	for _, c := range []struct {
		nested, imported string
		test, bad        bool
	}{
		{"cmd/tpm2cloud-lab", "pkg/est", false, true},
		{"cmd/tpm2cloud-lab", "pkg/est", true, true},
		{"cmd/tpm2cloud-lab", "cmd/tpm2cloud-lab/internal/cloud", false, false},
		{"cmd/tpm2cloud-azure", "pkg/est", false, false},
		{"cmd/tpm2cloud-azure", "pkg/tpm", true, true},
		{"cmd/tpm2cloud-azure", "pkg/config", true, false},
		{"cmd/tpm2cloud-azure", "pkg/config", false, true},
		{"cmd/tpm2cloud-azure", "cmd/tpm2cloud-lab/internal/cloud", true, true},
	} {
		if got := trespasses(file{test: c.test}, c.nested, module+"/"+c.imported); got != c.bad {
			t.Errorf("%s imports %s (test: %t): forbidden %t, want %t", c.nested, c.imported, c.test, got, c.bad)
		}
	}
}

// TestPackageDocs: the package comment is the manual, so there is one.
func TestPackageDocs(t *testing.T) {
	documented := map[string][]string{}
	for _, f := range goFiles(t) {
		if f.test {
			continue
		}
		files := documented[f.dir]
		if f.tree.Doc != nil {
			files = append(files, f.path)
			if name := f.tree.Name.Name; name != "main" && !strings.HasPrefix(f.tree.Doc.Text(), "Package "+name+" ") {
				t.Errorf("%s: the package comment must begin with %q (https://go.dev/doc/comment)", f.path, "Package "+name)
			}
		}
		documented[f.dir] = files
	}
	for dir, files := range documented {
		if len(files) != 1 {
			t.Errorf("the package in %s has %d package comments, and must have one: it is the place to read first %v", dir, len(files), files)
		}
	}
}

// TestDependencies: testdata/dependencies.txt lists what the programs link.
func TestDependencies(t *testing.T) {
	const golden = "testdata/dependencies.txt"
	data, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string][]string{} // module: programs
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.SplitN(line, "|", 3)
		if len(fields) != 3 || strings.TrimSpace(fields[2]) == "" {
			t.Fatalf("%s: %q is not module | programs | reason", golden, line)
		}
		listed[strings.TrimSpace(fields[0])] = strings.Fields(fields[1])
	}
	linked := map[string][]string{}
	for _, program := range []string{"idevid", "ldevid", "edgecfg", "tpm2cloud"} {
		for _, m := range modulesOf(t, program) {
			linked[m] = append(linked[m], program)
		}
	}
	for m, by := range linked {
		if want := listed[m]; !slices.Equal(by, want) {
			t.Errorf("%s is linked by %v, and %s says %v: a device runs every line of it, so the list says why", m, by, golden, want)
		}
	}
	for m := range listed {
		if linked[m] == nil {
			t.Errorf("%s is in %s and linked by no program", m, golden)
		}
	}
}

// modulesOf lists the modules that a program links.
func modulesOf(t *testing.T, program string) []string {
	t.Helper()
	cgo, folder := "0", "./cmd/tpm2cloud-"+program
	switch program {
	case "ldevid":
		cgo = "1"
	case "tpm2cloud":
		cgo, folder = "1", "./cmd/tpm2cloud"
	}
	cmd := exec.Command("go", "list", "-deps", "-tags", "libsqlite3,netgo,osusergo,nethttpomithttp2",
		"-f", "{{with .Module}}{{.Path}}{{end}}", folder)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo, "GOOS=linux")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, stderr.Bytes())
	}
	modules := strings.Fields(string(out))
	slices.Sort(modules)
	modules = slices.Compact(modules)
	return slices.DeleteFunc(modules, func(m string) bool { return m == module })
}

// goFiles parses the Go files of the repository as far as their imports.
func goFiles(t *testing.T) []file {
	t.Helper()
	var files []file
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != "." && (strings.HasPrefix(entry.Name(), ".") || strings.HasPrefix(entry.Name(), "_") ||
			entry.Name() == "testdata" || name == "build"):
			return filepath.SkipDir
		case entry.IsDir() || filepath.Ext(name) != ".go":
			return nil
		}
		tree, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		f := file{path: filepath.ToSlash(name), dir: path.Dir(filepath.ToSlash(name)), test: strings.HasSuffix(name, "_test.go"), tree: tree}
		for _, spec := range tree.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			f.imports = append(f.imports, imported)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 50 {
		t.Fatalf("only %d Go files found: this test must run in the root of the repository", len(files))
	}
	return files
}

// nestedModule is the folder of the module in which dir lies, "" for the main one.
func nestedModule(dir string) string {
	for ; dir != "."; dir = path.Dir(dir) {
		if _, err := os.Stat(filepath.Join(filepath.FromSlash(dir), "go.mod")); err == nil {
			return dir
		}
	}
	return ""
}
