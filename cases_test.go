package tpm2cloud_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// testdata/cases.md says what a first boot must survive and where that is tested;
// here is what makes it true.
const casesFile = "testdata/cases.md"

// lastCase is the number of cases. None is dropped: one that is not built says so.
const lastCase = 64

// The words that begin the part of a row that is no test.
const (
	otherwise = "decided otherwise: "
	later     = "later: "
)

var (
	caseRow  = regexp.MustCompile(`^\| (\d+) \| (.*) \|$`)
	codeSpan = regexp.MustCompile("`([^`]*)`")
)

func TestCases(t *testing.T) {
	data, err := os.ReadFile(casesFile)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for line := range strings.Lines(string(data)) {
		row := caseRow.FindStringSubmatch(strings.TrimSpace(line))
		if row == nil {
			continue
		}
		n, err := strconv.Atoi(row[1])
		if err != nil {
			t.Fatal(err)
		}
		if seen[n] {
			t.Errorf("case %d is twice in %s", n, casesFile)
		}
		if n < 1 || n > lastCase {
			t.Errorf("case %d in %s: the cases are 1 to %d", n, casesFile, lastCase)
		}
		seen[n] = true
		for _, why := range faults(strings.Split(row[2], " | ")) {
			t.Errorf("case %d in %s: %s", n, casesFile, why)
		}
	}
	for n := 1; n <= lastCase; n++ {
		if !seen[n] {
			t.Errorf("case %d is not in %s", n, casesFile)
		}
	}
}

// faults says what is wrong with the cells of a row behind its number: what happens,
// what must come of it, and the tests. Of a case that is all later there are two.
func faults(cells []string) (list []string) {
	fault := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	for _, cell := range cells {
		if len(cell) < 3 || strings.Contains(cell, "TODO") {
			fault("%q says nothing", cell)
		}
	}
	last := cells[len(cells)-1]
	if len(cells) == 2 && strings.HasPrefix(last, later) && len(last) > len(later)+10 {
		return list
	}
	if len(cells) != 3 {
		fault("it has %d columns", len(cells)+1)
		return list
	}
	tests, words, _ := strings.Cut(last, "; ")
	if words != "" && !(strings.HasPrefix(words, otherwise) && len(words) > len(otherwise)+20 || strings.HasPrefix(words, later) && len(words) > len(later)+10) {
		fault("what is behind the tests begins neither with %q nor with %q, or gives no reason: %q", otherwise, later, words)
	}
	named := codeSpan.FindAllStringSubmatch(tests, -1)
	if len(named) == 0 {
		fault("it names no test: %q", last)
	}
	if rest := strings.TrimSpace(codeSpan.ReplaceAllString(tests, "")); rest != "" {
		fault("%q is no test", rest)
	}
	for _, name := range named {
		if err := findTest(name[1]); err != nil {
			fault("%v", err)
		}
	}
	return list
}

// findTest looks for a test by the name that it has in the file.
func findTest(name string) error {
	place, test, _ := strings.Cut(name, " ")
	info, err := os.Stat(place)
	switch {
	case err != nil:
		return fmt.Errorf("cannot find the test %q: %w", name, err)
	case info.IsDir():
		return findGoTest(place, test)
	case test != "":
		return findCheck(place, test)
	}
	// What cmd's TestScripts runs.
	if ok, err := filepath.Match("cmd/testdata/*/*.txt", place); err != nil || !ok {
		return fmt.Errorf("%s is no script that anything runs", place)
	}
	return nil
}

// findGoTest looks for a test or a fuzz test in a folder, and for the name of its
// subtest, which may stand anywhere in the file of the test: in a table, say.
func findGoTest(dir, name string) error {
	name, sub, _ := strings.Cut(name, "/")
	if !strings.HasPrefix(name, "Test") && !strings.HasPrefix(name, "Fuzz") {
		return fmt.Errorf("%q in %s is no name of a test", name, dir)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return err
	}
	for _, file := range files {
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, declared := range tree.Decls {
			f, ok := declared.(*ast.FuncDecl)
			if !ok || f.Recv != nil || f.Name.Name != name {
				continue
			}
			if sub != "" && !hasString(tree, sub) {
				return fmt.Errorf("%s in %s has no subtest %q", name, file, sub)
			}
			return nil
		}
	}
	return fmt.Errorf("there is no %s in %s", name, dir)
}

func hasString(tree *ast.File, want string) (found bool) {
	ast.Inspect(tree, func(n ast.Node) bool {
		if literal, ok := n.(*ast.BasicLit); ok && literal.Kind == token.STRING {
			if text, err := strconv.Unquote(literal.Value); err == nil && text == want {
				found = true
			}
		}
		return !found
	})
	return found
}

// findCheck looks for a check of a script of shell: a function test_NAME that is
// in its list of tests, or the text of one.
func findCheck(file, name string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	script := string(data)
	listed := regexp.MustCompile(`(?ms)^tests=\(.*?\b` + regexp.QuoteMeta(name) + `\b.*?^\)`).MatchString(script)
	if listed && strings.Contains(script, "\ntest_"+name+"() {\n") || strings.Contains(script, `test_that "`+name+`" `) {
		return nil
	}
	return fmt.Errorf("%s has no check %q", file, name)
}

// TestCasesHaveTeeth shows faults something of each kind that is wrong.
func TestCasesHaveTeeth(t *testing.T) {
	const what, must = "something happens", "and something comes of it"
	good := "`cmd TestScripts` `cmd/testdata/idevid/ca.txt` `pkg/devid TestCheck/other key` `pkg/ek FuzzParse` `scripts/test-repo purge` `image/test-inject inject succeeds`"
	for _, cells := range [][]string{
		{what, must, good},
		{what, must, good + "; decided otherwise: there is a reason, which stands here"},
		{what, must, good + "; later: what is not built yet"},
		{what, "later: what is not built yet"},
	} {
		if list := faults(cells); len(list) > 0 {
			t.Errorf("%q: %q", cells, list)
		}
	}
	for _, cells := range [][]string{
		{what, must},
		{what, must, ""},
		{what, must, "TODO"},
		{what, must, "decided otherwise: a reason without any test, which is what must not be"},
		{what, must, "tested by hand"},
		{what, must, good + " and others"},
		{what, must, good + "; decided otherwise: so"},
		{what, must, good + "; because nobody wants it at all"},
		{what, must, good, "more"},
		{what, "TODO", good},
		{what, must, "`cmd TestGone`"},
		{what, must, "`cmd cmdRun`"},
		{what, must, "`gone TestScripts`"},
		{what, must, "`pkg/devid TestCheck/gone`"},
		{what, must, "`cmd/testdata/idevid/gone.txt`"},
		{what, must, "`testdata/dependencies.txt`"},
		{what, must, "`scripts/test-repo gone`"},
		{what, must, "`scripts/test-repo apt_`"},
		{what, must, "`image/test-inject injects`"},
		{what, must, "`image/gone purge`"},
	} {
		if len(faults(cells)) == 0 {
			t.Errorf("%q: nothing is found wrong", cells)
		}
	}
}
