package check

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Verdict is what came of a check.
type Verdict string

const (
	OK      Verdict = "ok"
	Warning Verdict = "warning" // it works, and is not as good as it could be
	Failed  Verdict = "failed"
	Skipped Verdict = "skipped" // it could not be checked, or there is nothing to check
)

// Check is one thing that can be proven.
type Check struct {
	ID    string // of small letters and hyphens, for ever the same
	Title string // what is proven, as tpm2cloud(7) has it
	needs []string
	run   func(context.Context, *Subject) finding
}

// Result is a check that was made.
type Result struct {
	ID      string  `json:"id"`
	Title   string  `json:"title"`
	Verdict Verdict `json:"verdict"`
	Detail  string  `json:"detail,omitempty"`
	Hint    string  `json:"hint,omitempty"`
	// Class is of what failed, and the exit code where it is the first.
	Class step.Class `json:"exit_code,omitempty"`
}

// finding is what a check found.
type finding struct {
	detail  string
	warning string // takes the place of detail
	hint    string
	skipped string // why; takes the place of both
	err     error  // takes the place of all
}

func found(format string, args ...any) finding { return finding{detail: fmt.Sprintf(format, args...)} }

func skip(format string, args ...any) finding { return finding{skipped: fmt.Sprintf(format, args...)} }

func warn(hint, format string, args ...any) finding {
	return finding{warning: fmt.Sprintf(format, args...), hint: hint}
}

func refuse(class step.Class, hint, format string, args ...any) finding {
	return finding{err: step.As(class, hint, fmt.Errorf(format, args...))}
}

// result is the finding as it is told.
func (c Check) result(f finding) Result {
	r := Result{ID: c.ID, Title: c.Title, Verdict: OK, Detail: f.detail, Hint: f.hint}
	switch class := step.ClassOf(f.err); {
	case f.err != nil && class == step.Permission:
		r.Verdict, r.Detail, r.Hint = Skipped, f.err.Error(), "run it as root"
	case f.err != nil:
		r.Verdict, r.Detail, r.Hint, r.Class = Failed, f.err.Error(), step.HintOf(f.err), class
	case f.skipped != "":
		r.Verdict, r.Detail = Skipped, f.skipped
	case f.warning != "":
		r.Verdict, r.Detail = Warning, f.warning
	}
	// Several problems of a configuration are several lines elsewhere.
	r.Detail = strings.ReplaceAll(strings.TrimSpace(r.Detail), "\n", "; ")
	return r
}

// List is all checks.
func List() []Check {
	return slices.Concat(configChecks(), tpmChecks(), keyChecks(), fileChecks(), agentChecks(), serverChecks(), unitChecks())
}

// Run makes all checks, and tells of each as soon as it is made. A check whose
// ground another one has found missing is skipped: one cause is one failure.
// Broken is why there is no configuration, and then the subject is nil.
func Run(ctx context.Context, s *Subject, broken error, tell func(Result)) []Result {
	var results []Result
	verdicts := map[string]Verdict{}
	for _, c := range List() {
		var f finding
		missing := slices.IndexFunc(c.needs, func(id string) bool { return verdicts[id] == Failed || verdicts[id] == Skipped })
		switch {
		case ctx.Err() != nil:
			f = skip("interrupted")
		case s == nil && c.ID == idConfig:
			f = finding{err: broken}
		case s == nil:
			f = skip("needs %s", idConfig)
		case missing >= 0:
			f = skip("needs %s", c.needs[missing])
		default:
			f = c.run(ctx, s)
		}
		r := c.result(f)
		verdicts[c.ID] = r.Verdict
		results = append(results, r)
		tell(r)
	}
	return results
}

// Failure is nil when nothing failed; else it is the first that did.
func Failure(results []Result) error {
	for _, r := range results {
		if r.Verdict == Failed {
			return step.As(r.Class, r.Hint, fmt.Errorf("%s: %s", r.ID, r.Detail))
		}
	}
	return nil
}

// row is what was seen of a step of a program.
func (s *Subject) row(ctx context.Context, program config.Program, name string) (step.Row, error) {
	look := s.Look(ctx, program)
	if look.Err != nil {
		return step.Row{}, look.Err
	}
	for _, row := range look.Rows {
		if row.Step == name {
			return row, nil
		}
	}
	return step.Row{}, step.Fail(step.Software, "%s has no step %s", program, name)
}

// step is the finding that a step of a program is present.
func (s *Subject) step(ctx context.Context, program config.Program, name string) finding {
	if err := s.Config.Check(program); err != nil {
		return skip("needs %s", idConfig)
	}
	row, err := s.row(ctx, program, name)
	if err == nil {
		err = row.Err
	}
	switch {
	case err != nil:
		return finding{err: err}
	case row.Waiting != "":
		return skip("%s", row.Waiting)
	case row.State == step.Unknown:
		return skip("%s", row.Detail) // which step it waits for: that one failed
	case row.State != step.Present:
		class, hint := step.Temporary, row.Hint
		if row.State == step.Conflict {
			class = step.Refused
		}
		if hint == "" {
			// Not the target's start: it leaves a unit alone that has ended well.
			hint = fmt.Sprintf("systemctl restart %s makes it; journalctl -x -u %s says how that went", program, program)
		}
		return refuse(class, hint, "%s is %s", row.Object, strings.TrimSuffix(row.State.String()+": "+row.Detail, ": "))
	case len(row.Warnings) > 0:
		return warn("", "%s: %s", row.Object, strings.Join(row.Warnings, "; "))
	}
	return found("%s: %s", row.Object, row.Detail)
}

// steps is the finding that several steps are present: the first that is not.
func (s *Subject) steps(ctx context.Context, program config.Program, names ...string) (f finding) {
	for _, name := range names {
		next := s.step(ctx, program, name)
		if next.err != nil || next.skipped != "" {
			return next
		}
		if next.warning != "" || f.warning == "" {
			f = next
		}
	}
	return f
}
