package status

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

func row(name string, state step.State, object string, since time.Time) Step {
	return Step{Row: step.Row{Step: name, Observation: step.Observation{State: state, Object: object}}, Since: since}
}

func TestInherit(t *testing.T) {
	dir := store.Open(filepath.Join(t.TempDir(), "run"), 0o755)
	defer dir.Close()
	early := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	late := early.Add(time.Hour)
	first := &Record{Program: "p", Began: early, Ended: early, ExitCode: 75, TPM: &TPM{Vendor: "IFX"},
		Steps:     []Step{row("a", step.Present, "x", early), row("b", step.Missing, "y", early), row("c", step.Present, "z", early)},
		LastError: Describe(&step.Failure{Step: "b", Err: step.As(step.Refused, "do this", errors.New("why"))}, early)}
	if err := first.Write(dir); err != nil {
		t.Fatal(err)
	}
	second := &Record{Program: "p", Began: late, Ended: late,
		Steps: []Step{row("a", step.Present, "x", late), row("b", step.Present, "y", late), row("c", step.Present, "other", late)}}
	if err := second.Write(dir); err != nil {
		t.Fatal(err)
	}
	got, err := Read(dir, "p")
	if err != nil {
		t.Fatal(err)
	}
	want := &Record{Version: Version, Program: "p", Began: late, Ended: late, TPM: &TPM{Vendor: "IFX"},
		Steps:     []Step{row("a", step.Present, "x", early), row("b", step.Present, "y", late), row("c", step.Present, "other", late)},
		LastError: &Failure{At: early, Step: "b", Error: "b: why", Hint: "do this", ExitCode: 65}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if info, err := os.Stat(dir.Path("p.json")); err != nil || info.Mode() != 0o644 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// Whatever is in the place of a record, a reader says so, and a writer puts its
// own there.
func TestForeign(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON": "{", "empty": "", "another program's": `{"version":1,"program":"q"}`, "later": `{"version":2,"program":"p"}`,
		"of other types": `{"version":1,"program":"p","steps":[{"state":7}]}`,
	} {
		dir := store.Open(t.TempDir(), 0o755)
		if err := os.WriteFile(dir.Path("p.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if r, err := Read(dir, "p"); err == nil || NotRun(err) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if err := (&Record{Program: "p"}).Write(dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Read(dir, "p"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		dir.Close()
	}
	if _, err := Read(store.Open(filepath.Join(t.TempDir(), "none"), 0o755), "p"); !NotRun(err) {
		t.Errorf("a program that has not run: %v", err)
	}
}
