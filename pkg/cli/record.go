package cli

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/status"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// record is what a run leaves for `tpm2cloud status`. A nil record leaves
// nothing, and a record that cannot be written changes nothing for the run.
type record struct {
	dir     string
	began   time.Time
	warn    func(format string, args ...any)
	session Session
	ended   map[string]step.Event // by step
	written status.Record
}

func (r *run) newRecord() *record {
	return &record{dir: filepath.Join(r.root, status.Dir), began: now(), warn: r.warn,
		ended: map[string]step.Event{}, written: status.Record{Program: r.Name}}
}

// now is the time as the records have it.
func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

// begin notes what is known once the program is ready.
func (r *record) begin(session Session) {
	if r == nil {
		return
	}
	r.session = session
	c := session.Clock()
	r.written.Clock = &status.Clock{Verified: c.Verified, Time: c.Time.UTC(), Why: c.Why}
}

// done notes a step that ended.
func (r *record) done(e step.Event) {
	if r != nil {
		r.ended[e.Step] = e
	}
}

// retry writes that a try failed and another one follows.
func (r *record) retry(e step.Event) {
	if r == nil {
		return
	}
	r.written.LastError = status.Describe(&step.Failure{Step: e.Step, Err: e.Err}, now())
	r.write(&step.Failure{Step: e.Step, Observation: e.Observation, Err: e.Err}, time.Time{})
}

// end writes how the run ended.
func (r *record) end(err error) {
	if r == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	if err = interrupted(err); err != nil {
		r.written.LastError = status.Describe(err, now())
		r.written.ExitCode = int(step.ClassOf(err))
	}
	failure, _ := errors.AsType[*step.Failure](err)
	r.write(failure, now())
}

func (r *record) write(failed *step.Failure, ended time.Time) {
	w := r.written
	w.Began, w.Ended = r.began, ended
	if r.session.TPM != nil {
		w.TPM = r.session.TPM()
	}
	w.Steps = make([]status.Step, 0, len(r.session.Steps))
	for _, s := range r.session.Steps {
		w.Steps = append(w.Steps, status.Step{Row: r.row(s.Name(), failed), Since: now()})
	}
	dir := store.Open(r.dir, 0o755)
	defer dir.Close()
	if err := w.Write(dir); err != nil {
		r.warn("%v", fmt.Errorf("tpm2cloud status will not show this run: %w", err))
	}
}

// row is what the run saw of a step.
func (r *record) row(name string, failed *step.Failure) step.Row {
	row := step.Row{Step: name, Observation: step.Observation{State: step.Unknown, Detail: "not reached"}}
	if e, ok := r.ended[name]; ok {
		row.Observation = e.Observation
	} else if failed != nil && failed.Step == name {
		row.Observation, row.Error = failed.Observation, failed.Err.Error()
	}
	return row
}
