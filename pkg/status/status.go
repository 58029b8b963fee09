// Package status is what the last runs of the programs left behind for those
// who may not look themselves: whoever may open the TPM may also destroy keys in
// it, so a look takes root, and how the units ended does not.
//
// # Format
//
// Each program writes one file, /run/tpm2cloud/PROGRAM.json, of mode 0644: a
// [Record]. A file has one writer, so that nothing is merged under a lock and
// root replaces nothing of the other programs' user; a reader puts the records
// side by side. They are in memory and gone with the boot that they tell of.
//
// A record is written when a run ends, and when a try has failed and another
// one follows. It holds what the run saw anyway: no TPM command is sent for it.
// Texts are those of the journal and hold no secret.
//
// Version counts changes that a reader must know of; keys that are added do not
// change it.
package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// Dir is where the records are, a path of the configuration.
const Dir = "/run/tpm2cloud"

// Version is that of the format.
const Version = 1

// Record is how a program's last run went.
type Record struct {
	Version int       `json:"version"`
	Program string    `json:"program"`
	Began   time.Time `json:"began"`
	// Ended is zero while the run waits for another try.
	Ended    time.Time `json:"ended,omitzero"`
	ExitCode int       `json:"exit_code"`
	Clock    *Clock    `json:"clock,omitempty"` // nil: the run did not get that far
	TPM      *TPM      `json:"tpm,omitempty"`   // of tpm2cloud-idevid
	Steps    []Step    `json:"steps"`
	// LastError is that of the last run that failed, or of the last try, in
	// this boot; a later run that ended well does not take it away.
	LastError *Failure `json:"last_error,omitempty"`
}

// Step is a row of the program.
type Step struct {
	step.Row
	// Since is when the step was first seen in this state, in this boot.
	Since time.Time `json:"since"`
}

// Clock is how the clock stood that certificates were judged at.
type Clock struct {
	Verified bool      `json:"verified"`
	Time     time.Time `json:"time"`
	Why      string    `json:"why,omitempty"` // why it is not verified
}

// TPM is what a TPM is and how it stands. In a record vendor, model and firmware
// are those in the vendor's certificate, and empty without one; a fresh look has
// what the TPM says itself.
type TPM struct {
	Vendor         string `json:"vendor,omitempty"`
	Model          string `json:"model,omitempty"`
	Firmware       string `json:"firmware,omitempty"`
	LockoutCounter int    `json:"lockout_counter"`
	LockoutMax     int    `json:"lockout_max"`
}

func (t *TPM) String() string {
	text := fmt.Sprintf("%d of %d failed authorisations", t.LockoutCounter, t.LockoutMax)
	if t.Vendor != "" {
		text = fmt.Sprintf("%s %s, firmware %s, %s", t.Vendor, t.Model, t.Firmware, text)
	}
	return text
}

// Failure is an error as the journal has it.
type Failure struct {
	At       time.Time `json:"at"`
	Step     string    `json:"step,omitempty"`
	Error    string    `json:"error"`
	Hint     string    `json:"hint,omitempty"`
	ExitCode int       `json:"exit_code"`
}

// Describe is an error that a run or a try ended with.
func Describe(err error, at time.Time) *Failure {
	// Several problems of a configuration are several lines elsewhere.
	f := &Failure{At: at, Error: strings.ReplaceAll(err.Error(), "\n", "; "), Hint: step.HintOf(err), ExitCode: int(step.ClassOf(err))}
	if failure, ok := errors.AsType[*step.Failure](err); ok {
		f.Step = failure.Step
	}
	return f
}

func file(program string) string { return program + ".json" }

// Write puts a record in the place of the program's last one, from which it
// takes what is older than the run.
func (r *Record) Write(dir *store.Dir) error {
	r.Version = Version
	if last, err := Read(dir, r.Program); err == nil {
		r.inherit(last)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return dir.Write(file(r.Program), append(data, '\n'), 0o644)
}

// Afresh is a record of steps that somebody has just looked at; what is said of
// the last run is the last record's, nil where there is none.
func Afresh(program string, rows []step.Row, at time.Time, last *Record) *Record {
	r := &Record{Version: Version, Program: program, Steps: make([]Step, 0, len(rows))}
	for _, row := range rows {
		r.Steps = append(r.Steps, Step{Row: row, Since: at})
	}
	if last != nil {
		r.Began, r.Ended, r.ExitCode = last.Began, last.Ended, last.ExitCode
		r.inherit(last)
	}
	return r
}

// Rows are the steps without their times.
func (r *Record) Rows() []step.Row {
	rows := make([]step.Row, 0, len(r.Steps))
	for _, s := range r.Steps {
		rows = append(rows, s.Row)
	}
	return rows
}

// inherit takes over since when the steps are as they are, and what went wrong
// last.
func (r *Record) inherit(last *Record) {
	for i := range r.Steps {
		for _, old := range last.Steps {
			if s := &r.Steps[i]; old.Step == s.Step && old.State == s.State && old.Object == s.Object && old.Since.Before(s.Since) {
				s.Since = old.Since
			}
		}
	}
	if r.LastError == nil {
		r.LastError = last.LastError
	}
	if r.TPM == nil {
		r.TPM = last.TPM
	}
}

// Read reads the record of a program; the error is fs.ErrNotExist where it has
// not run in this boot.
func Read(dir *store.Dir, program string) (*Record, error) {
	data, err := dir.Read(file(program))
	if err != nil {
		return nil, err
	}
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", dir.Path(file(program)), err)
	}
	if r.Version > Version {
		return nil, fmt.Errorf("cannot use %s: its format is %d, and this program knows %d", dir.Path(file(program)), r.Version, Version)
	}
	if r.Program != program {
		return nil, fmt.Errorf("cannot use %s: it is of %q", dir.Path(file(program)), r.Program)
	}
	for i := range r.Steps {
		// The error itself did not outlive the run; its class did.
		if row := &r.Steps[i].Row; row.Error != "" {
			row.Err = step.As(step.Class(r.ExitCode), "", errors.New(row.Error))
		}
	}
	return &r, nil
}

// NotRun says whether Read failed because the program has not run yet.
func NotRun(err error) bool { return errors.Is(err, fs.ErrNotExist) }
