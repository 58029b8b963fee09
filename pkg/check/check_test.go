package check

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// The manual has a line for each check, in their order, and for no other.
func TestManual(t *testing.T) {
	data, err := os.ReadFile("../../debian/man/tpm2cloud.7.scd")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(data), "\n# CHECKS\n")
	if !ok {
		t.Fatal("tpm2cloud(7) has no section CHECKS")
	}
	section, _, _ = strings.Cut(section, "\n# ")
	var manual, program []string
	for _, m := range regexp.MustCompile(`(?m)^\*([a-z-]+)\*\n((?:\t.*\n)+)`).FindAllStringSubmatch(section, -1) {
		manual = append(manual, m[1]+": "+strings.Join(strings.Fields(m[2]), " "))
	}
	for _, c := range List() {
		program = append(program, c.ID+": "+c.Title)
	}
	if !slices.Equal(manual, program) {
		for _, line := range program {
			if !slices.Contains(manual, line) {
				t.Errorf("the manual lacks %q", line)
			}
		}
		for _, line := range manual {
			if !slices.Contains(program, line) {
				t.Errorf("there is no check %q", line)
			}
		}
		t.Error("the manual and the program differ")
	}
}

// IDs are unique, and a check needs only what was checked before.
func TestList(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range List() {
		if seen[c.ID] || c.run == nil || !regexp.MustCompile(`^[a-z]+(-[a-z0-9]+)*$`).MatchString(c.ID) || !strings.HasSuffix(c.Title, ".") {
			t.Errorf("%q is twice, or not whole", c.ID)
		}
		for _, need := range c.needs {
			if !seen[need] {
				t.Errorf("%s needs %s, which is not checked before", c.ID, need)
			}
		}
		seen[c.ID] = true
	}
}

func TestResult(t *testing.T) {
	c := Check{ID: "x", Title: "X."}
	for _, test := range []struct {
		finding
		want Result
	}{
		{finding{}, Result{Verdict: OK}},
		{found("fine"), Result{Verdict: OK, Detail: "fine"}},
		{warn("do", "hm"), Result{Verdict: Warning, Detail: "hm", Hint: "do"}},
		{skip("why"), Result{Verdict: Skipped, Detail: "why"}},
		{finding{err: errors.New("a\nb")}, Result{Verdict: Failed, Detail: "a; b", Class: step.Temporary}},
		{refuse(step.Refused, "do", "no"), Result{Verdict: Failed, Detail: "no", Hint: "do", Class: step.Refused}},
		{refuse(step.Permission, "", "no"), Result{Verdict: Skipped, Detail: "no", Hint: "run it as root"}},
	} {
		test.want.ID, test.want.Title = "x", "X."
		if got := c.result(test.finding); got != test.want {
			t.Errorf("%+v, want %+v", got, test.want)
		}
	}
}

func TestAssignments(t *testing.T) {
	for text, want := range map[string][]string{
		"":              nil,
		"A=b":           {"A=b"},
		"A=b C=d":       {"A=b", "C=d"},
		`A=b "C=d e" F`: {"A=b", "C=d e", "F"},
		`"A=\"b\" c"`:   {`A="b" c`},
		`A=b\\c ""`:     {`A=b\c`, ""},
	} {
		if got := assignments(text); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
