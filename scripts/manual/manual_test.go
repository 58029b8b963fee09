package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
)

// root is the root of the repository, seen from this folder.
const root = "../.."

func TestConffileIsUpToDate(t *testing.T) {
	m, err := readKeys(keysText)
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile(filepath.Join(root, conffile))
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != m.conffile() {
		t.Errorf("%s is not what keys.toml and pkg/config make: run make generate", conffile)
	}
}

// TestPageHasEveryKey: each key is an entry below the heading of its table, with
// its default.
func TestPageHasEveryKey(t *testing.T) {
	page, err := readSource(filepath.Join(root, sources, "tpm2cloud.toml.5.scd"))
	if err != nil {
		t.Fatal(err)
	}
	headings := regexp.MustCompile(`(?m)^(?:# ([A-Z]+)|## \[([a-z.]+)\])$`).FindAllStringSubmatchIndex(page, -1)
	below := map[string]string{}
	for i, at := range headings {
		end := len(page)
		if i+1 < len(headings) {
			end = headings[i+1][0]
		}
		if at[2] >= 0 {
			below[strings.ToLower(page[at[2]:at[3]])] = page[at[1]:end]
		} else {
			below[page[at[4]:at[5]]] = page[at[1]:end]
		}
	}
	m, err := readKeys(keysText)
	if err != nil {
		t.Fatal(err)
	}
	if have, want := len(m.list), len(config.Keys()); have != want {
		t.Errorf("%d keys, want %d", have, want)
	}
	for _, k := range m.list {
		table, name := k.Table()
		term := regexp.MustCompile(`(?m)^(?:\S.*, )?\*` + regexp.QuoteMeta(name) + `\*( = (.*?))?(?:, \*.*)?$`).FindStringSubmatch(below[table])
		switch {
		case term == nil:
			t.Errorf("tpm2cloud.toml(5) does not have %s", k.Name)
		case k.Default != `""` && term[2] != k.Default:
			t.Errorf("tpm2cloud.toml(5) says %s = %s, and it is %s", k.Name, term[2], k.Default)
		}
		for _, word := range k.Words {
			if k.as == "" && !strings.Contains(below[table], fmt.Sprintf("%q: ", word)) {
				t.Errorf("tpm2cloud.toml(5) does not say what %s = %q means", k.Name, word)
			}
		}
	}
}

func TestKeysComplain(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{"[key.\"ek.trust\"]\ntext", "[key.\"ek.trust\"]\ncomment", `there is no text for the key ek.trust: add [key."ek.trust"]`},
		{`[key."ek.trust"]`, `[key."ek.trusts"]`, "there is no key ek.trusts"},
		{`[table."edge.est"]`, `[table."edge.ets"]`, "there is no text for the table [edge.est]"},
		{`[table."edge.est"]`, `[table."edge.ets"]`, "there is no table [edge.ets]"},
		{`words.owner = `, `words.user = `, `idevid.storage takes the words ["owner" "platform"], and the text explains ["platform" "user"]`},
		{`words.warn = "the run goes on, and status says so"`, ``, "ek.verify takes the words"},
		{"[key.\"ldevid.key\"]\nas = \"idevid\"", "[key.\"ldevid.key\"]\nas = \"idevids\"", "ldevid.key has as"},
		{"[key.\"ldevid.key\"]\nas = \"idevid\"", "[key.\"ldevid.key\"]\nas = \"idevid\"\ntext = \"x\"", "ldevid.key has as"},
		{"[key.\"ek.trust\"]\n", "[key.\"ek.trust\"]\ntexts = \"\"\n", "texts"},
	} {
		text := strings.Replace(string(keysText), c.old, c.new, 1)
		if text == string(keysText) {
			t.Fatalf("keys.toml does not have %q", c.old)
		}
		if _, err := readKeys([]byte(text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q in place of %q: error %v, want %q", c.new, c.old, err, c.want)
		}
	}
}

func TestLine(t *testing.T) {
	for _, c := range []struct{ setting, comment, want string }{
		{"#a = 1", "", "#a = 1\n"},
		{"#a = 1", "one", "#a = 1" + strings.Repeat(" ", column-6) + "# one\n"},
		{"#a = " + strings.Repeat("1", 40), "one", "#a = " + strings.Repeat("1", 40) + "  # one\n"},
		{"#a = 1", strings.Repeat("word ", 14), "#a = 1" + strings.Repeat(" ", column-6) + "#" + strings.Repeat(" word", 13) + "\n" +
			strings.Repeat(" ", column) + "# word\n"},
	} {
		if got := line(c.setting, c.comment); got != c.want {
			t.Errorf("got\n%swant\n%s", got, c.want)
		}
	}
}

// --- pages and programs ----------------------------------------------------------

// help is what a program says of itself.
type help struct {
	verbs  []string
	common []string            // flags
	own    map[string][]string // flags by verb
}

// TestManualAndPrograms holds each program of cmd/ against its page: verbs and
// flags are in both, and a flag takes a value in both or in none.
func TestManualAndPrograms(t *testing.T) {
	mains, err := filepath.Glob(filepath.Join(root, "cmd/*/main.go"))
	if err != nil || len(mains) < 4 {
		t.Fatalf("programs: %q, %v", mains, err)
	}
	var names []string
	for _, file := range mains {
		names = append(names, filepath.Base(filepath.Dir(file)))
	}
	pages, err := filepath.Glob(filepath.Join(root, sources, "*.[18].scd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range pages {
		if name, _ := programOf(pageName(file)); !slices.Contains(names, name) {
			t.Errorf("%s is of no program in cmd/", file)
		}
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			files, _ := filepath.Glob(filepath.Join(root, sources, name+".[18].scd"))
			if len(files) != 1 {
				t.Fatalf("cmd/%s has no manual page: write %s", name, filepath.Join(root, sources, name+".8.scd"))
			}
			file := files[0]
			page, err := readSource(file)
			if err != nil {
				t.Fatal(err)
			}
			c, err := readCommand(page)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			binary := build(t, name)
			for _, fault := range c.compare(page, askHelp(t, binary, name)) {
				t.Error(fault)
			}
			c.checkValues(t, binary)
		})
	}
}

// build builds a program, in the module that it is of.
func build(t *testing.T, name string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name)
	cmd := exec.Command("go", "build", "-tags", "libsqlite3,netgo,osusergo,nethttpomithttp2", "-ldflags=-s -w", "-o", out, ".")
	cmd.Dir = filepath.Join(root, "cmd", name)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build %s: %v\n%s", name, err, said)
	}
	return out
}

// ask runs a program that must only speak.
func ask(t *testing.T, binary string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

var (
	flagLine = regexp.MustCompile(`^  --?([a-z][a-z0-9-]*)`)
	flagsOf  = regexp.MustCompile(`^flags(?: of ([a-z][a-z -]*))?:$`)
)

// askHelp reads --help, of the program and of each verb.
func askHelp(t *testing.T, binary, name string) help {
	t.Helper()
	text, _, code := ask(t, binary, "--help")
	if code != 0 {
		t.Fatalf("--help ends with %d", code)
	}
	h := help{own: map[string][]string{}}
	// A line "PROGRAM [flags] VERB", "PROGRAM VERB --flag", or "  VERB --flag" below "Commands:".
	verbLine := regexp.MustCompile(`(?m)^(?:usage: |  +)` + regexp.QuoteMeta(name) + ` (?:\[flags\] )?([a-z]+)\s`)
	if _, commands, ok := strings.Cut(text, "\nCommands:\n"); ok {
		text, verbLine = commands, regexp.MustCompile(`(?m)^  ([a-z]+(?: [a-z]+)*) `)
	}
	for _, found := range verbLine.FindAllStringSubmatch(text, -1) {
		h.verbs = append(h.verbs, found[1])
	}
	h.read(text, "")
	for _, v := range h.verbs {
		of, _, code := ask(t, binary, append(strings.Fields(v), "--help")...)
		if code != 0 {
			t.Errorf("%s --help ends with %d", v, code)
		}
		// The same for each verb, or the verb's own.
		if !strings.HasSuffix(of, text) {
			h.read(of, v)
		}
	}
	return h
}

// read takes the flags out of a text; those below no heading of a verb are of the
// verb given.
func (h *help) read(text, verb string) {
	at := verb
	for line := range strings.Lines(text) {
		if found := flagsOf.FindStringSubmatch(strings.TrimSpace(line)); found != nil {
			at = found[1]
		}
		found := flagLine.FindStringSubmatch(line)
		switch {
		case found == nil:
		case at == "":
			h.common = append(h.common, found[1])
		default:
			h.own[at] = append(h.own[at], found[1])
		}
	}
}

// compare says what is only in one of page and program.
func (c *command) compare(page string, h help) (faults []string) {
	differ := func(what, of string, page, program []string) {
		slices.Sort(page)
		slices.Sort(program)
		for _, s := range program {
			if !slices.Contains(page, s) {
				faults = append(faults, fmt.Sprintf("the manual page does not have %s %s%s: add it to SYNOPSIS or OPTIONS, and say what it does", what, s, of))
			}
		}
		for _, s := range page {
			if !slices.Contains(program, s) {
				faults = append(faults, fmt.Sprintf("the program does not have %s %s%s, which the manual page has", what, s, of))
			}
		}
	}
	flags := func(options []option) (names []string) {
		for _, o := range options {
			if o.name != "help" { // of package flag
				names = append(names, "--"+o.name)
			}
		}
		return names
	}
	dashed := func(names []string) (flags []string) {
		for _, n := range names {
			flags = append(flags, "--"+n)
		}
		return flags
	}
	var verbs []string
	described := strings.Replace(page, section(page, "SYNOPSIS"), "", 1)
	say := func(o option) {
		if !strings.Contains(described, "*--"+o.name+"*") {
			faults = append(faults, fmt.Sprintf("the manual page does not say what --%s does", o.name))
		}
	}
	for _, v := range c.verbs {
		for _, o := range v.options {
			say(o)
		}
		differ("the flag", " of "+v.words, flags(v.options), dashed(h.own[v.words]))
		if v.words == "" {
			continue
		}
		verbs = append(verbs, v.words)
		if !regexp.MustCompile(`(?m)^\*` + v.words + `\*`).MatchString(described) {
			faults = append(faults, fmt.Sprintf("the manual page does not say what %s does", v.words))
		}
	}
	for _, o := range c.common {
		if o.name != "help" {
			say(o)
		}
	}
	differ("the flag", "", flags(c.common), dashed(h.common))
	differ("the verb", "", verbs, slices.Clone(h.verbs))
	return faults
}

// checkValues has package flag itself say whether a flag takes a value. --help
// stands behind it, so that nothing is done.
func (c *command) checkValues(t *testing.T, binary string) {
	t.Helper()
	for _, v := range c.verbs {
		for _, o := range c.optionsOf(v.words) {
			if o.name == "help" {
				continue
			}
			_, stderr, _ := ask(t, binary, append(strings.Fields(v.words), "--"+o.name+"=x", "--help")...)
			if boolean := strings.Contains(stderr, "invalid boolean value"); boolean == (o.value != "") {
				t.Errorf("%s --%s: in the manual page it takes the value %q, in the program it is a switch: %t", v.words, o.name, o.value, boolean)
			}
		}
	}
}

// TestCompareHasTeeth takes away and adds what compare must see.
func TestCompareHasTeeth(t *testing.T) {
	const page = "prog(8)\n\n# SYNOPSIS\n\n*prog* [options]++\n*prog* [options] *go* [*--fast*] [*--to* _FILE_]\n\n# VERBS\n\n*go*\n\tGoes, *--fast*, *--to* somewhere.\n\n" +
		"# OPTIONS\n\n*--json*\n\tJSON.\n\n*--help*\n\tHelp.\n"
	whole := func() help {
		return help{verbs: []string{"go"}, common: []string{"json"}, own: map[string][]string{"go": {"fast", "to"}}}
	}
	for _, c := range []struct {
		name     string
		old, new string
		change   func(*help)
		want     string
	}{
		{name: "as it is"},
		{name: "flag without text", change: func(h *help) { h.own["go"] = append(h.own["go"], "new") }, want: "does not have the flag --new of go"},
		{name: "text without flag", change: func(h *help) { h.own["go"] = []string{"to"} }, want: "program does not have the flag --fast of go"},
		{name: "common flag without text", change: func(h *help) { h.common = append(h.common, "root") }, want: "does not have the flag --root"},
		{name: "verb without text", change: func(h *help) { h.verbs = append(h.verbs, "stop") }, want: "does not have the verb stop"},
		{name: "text without verb", change: func(h *help) { h.verbs, h.own = nil, nil }, want: "program does not have the verb go"},
		{name: "in the synopsis only", old: "*--fast*, ", want: "does not say what --fast does"},
		{name: "verb in the synopsis only", old: "*go*\n", new: "*run*\n", want: "does not say what go does"},
	} {
		text := strings.Replace(page, c.old, c.new, 1)
		command, err := readCommand(text)
		if err != nil {
			t.Fatal(err)
		}
		h := whole()
		if c.change != nil {
			c.change(&h)
		}
		faults := strings.Join(command.compare(text, h), "\n")
		if !strings.Contains(faults, c.want) || (c.want == "") != (faults == "") {
			t.Errorf("%s: %q, want %q", c.name, faults, c.want)
		}
	}
}

// TestCompletion asks bash what it completes, as a user would see it.
func TestCompletion(t *testing.T) {
	dir := t.TempDir()
	for _, file := range []string{"ca.pem", "work/x"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The words of a line as bash has them in COMP_WORDS: "=" is one.
	for line, want := range map[string]string{
		"tpm2cloud-ldevid ":                        "status renew due",
		"tpm2cloud-ldevid r":                       "renew",
		"tpm2cloud-ldevid -":                       "--config --root --json --help",
		"tpm2cloud-ldevid --json re":               "renew",
		"tpm2cloud-ldevid --config work d":         "due",
		"tpm2cloud-ldevid renew ":                  "--now --new-key --config --root --json --help",
		"tpm2cloud-ldevid renew --n":               "--now --new-key",
		"tpm2cloud-ldevid due --n":                 "",
		"tpm2cloud-ldevid --config ":               "work",
		"tpm2cloud-ldevid --config = wo":           "work",
		"tpm2cloud-ldevid --root =":                "work",
		"tpm2cloud-idevid verify --ca c":           "ca.pem",
		"tpm2cloud-idevid verify --ca ":            "ca.pem work",
		"tpm2cloud-idevid verify --cn ":            "",
		"tpm2cloud-idevid export --ca ":            "--der --config --root --json --help", // there is no such flag of export
		"tpm2cloud-edgecfg --json = true ref":      "refresh",
		"tpm2cloud-lab ":                           "ca serve agent keyd use",
		"tpm2cloud-lab ca ":                        "create",
		"tpm2cloud-lab ca create ":                 "work",
		"tpm2cloud-lab serve --dir work --l":       "--listen --ldevid-days",
		"tpm2cloud-lab keyd --dropin ca":           "ca.pem",
		"tpm2cloud-lab agent --state ":             "work",
		"tpm2cloud-lab serve --listen 127.0.0.1 -": "--dir --listen --fault --ldevid-days --operational-days --help",
	} {
		name, _, _ := strings.Cut(line, " ")
		page, err := readSource(filepath.Join(root, sources, name+".8.scd"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := readCommand(page)
		if err != nil {
			t.Fatal(err)
		}
		script := c.completion() + `
line=$1
read -r -a COMP_WORDS <<<"$line"
[[ $line != *' ' ]] || COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
spec=$(complete -p "${COMP_WORDS[0]}") || exit
function=${spec#*-F }
"${function%% *}" && echo "${COMPREPLY[*]}"
`
		cmd := exec.Command("bash", "-u", "-c", script, "bash", line)
		cmd.Dir = dir
		said, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(said)); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", line, got, err, want)
		}
	}
}

// TestPages makes all pages: mandoc, which is stricter than man, has nothing to say.
func TestPages(t *testing.T) {
	for _, program := range []string{"scdoc", "mandoc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed: scripts/deps package lint", program)
		}
	}
	dir := t.TempDir()
	t.Chdir(root)
	if err := makeAll(dir); err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(dir + "/man/*")
	if err != nil || len(pages) < 6 {
		t.Fatalf("pages: %q, %v", pages, err)
	}
	if said, err := exec.Command("mandoc", append([]string{"-T", "lint", "-W", "warning"}, pages...)...).CombinedOutput(); err != nil || len(said) > 0 {
		t.Errorf("mandoc: %v\n%s", err, said)
	}
	for _, page := range pages {
		name, ok := programOf(filepath.Base(page))
		if !ok {
			continue
		}
		script, err := os.ReadFile(filepath.Join(dir, "completions", name))
		if err != nil {
			t.Errorf("%s has no completion: %v", name, err)
		}
		section := strings.TrimPrefix(filepath.Ext(page), ".")
		if head := fmt.Sprintf("# bash completion for %s(%s),", name, section); !strings.HasPrefix(string(script), head) {
			t.Errorf("the completion of %s does not begin with %q", name, head)
		}
	}
}

func TestTidy(t *testing.T) {
	for given, want := range map[string]string{
		".TH \"a\"\n.P\n.SH NAME\n.P\ntext\n.P\n.SH NEXT\n": ".TH \"a\"\n.SH NAME\ntext\n.SH NEXT\n",
		"term\n.RS 4\ntext\n.P\n.RE\nterm\n":                "term\n.RS 4\ntext\n.RE\n.P\nterm\n",
		"text\n.PP\n.RE\n.RE\nterm\n":                       "text\n.RE\n.RE\n.PP\nterm\n",
		"text:\n.P\n.RS 4\nlist\n":                          "text:\n.sp\n.RS 4\nlist\n",
		"text\n.P\n.RE\n.P\n":                               "text\n.RE\n",
		"text\n.P\ntext\n":                                  "text\n.P\ntext\n",
	} {
		if got := string(tidy([]byte(given))); got != want {
			t.Errorf("%q became %q, want %q", given, got, want)
		}
	}
}
