package step

import (
	"errors"
	"fmt"
	"time"
)

// Class says what an error means for the run, and is the exit code that the
// program ends with (the numbers follow sysexits.h where it has one).
type Class int

const (
	// Usage: the command line is wrong.
	Usage Class = 64
	// Refused: the TPM, a key or a certificate is not what it must be.
	Refused Class = 65
	// Unavailable: there is no TPM, or no PKCS#11 module or token.
	Unavailable Class = 69
	// Software: this program is wrong.
	Software Class = 70
	// Temporary: the same thing may succeed later. The zero Class means this.
	Temporary Class = 75
	// ServerRefused: the EST server answered that it will not (401, 403, or
	// another final status).
	ServerRefused Class = 76
	// Permission: the operating system forbids it.
	Permission Class = 77
	// Configuration: the configuration is wrong.
	Configuration Class = 78
)

// Reason is why a run failed, where somebody looks for that and not for the
// class: the journal's catalog has a text for each.
type Reason string

const (
	// NoTPM: the TPM's device cannot be opened.
	NoTPM Reason = "no-tpm"
	// NotGenuine: the TPM did not prove that a trusted vendor made it.
	NotGenuine Reason = "not-genuine"
	// OtherTPM: the state on disk was made with another TPM.
	OtherTPM Reason = "other-tpm"
)

// Error classifies a cause. Its text is the cause's: class and hint are for
// whoever decides on them, the runner and the edge of the program.
type Error struct {
	Class Class
	// NotBefore is when a Temporary error is worth another try, as the other
	// side said it (Retry-After); zero when it said nothing.
	NotBefore time.Time
	// Busy, Failures and Drawn are those of [Setback].
	Busy     bool
	Failures int
	Drawn    bool
	// Hint is the technician's next action.
	Hint string
	// Reason is set on the few errors that have one.
	Reason Reason
	Err    error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Fail makes an error of a class.
func Fail(class Class, format string, args ...any) error {
	return &Error{Class: class, Err: fmt.Errorf(format, args...)}
}

// As gives err a class, and a hint where there is one to give. A nil err stays
// nil, and an error that has been classified already keeps its class.
func As(class Class, hint string, err error) error {
	if err == nil {
		return nil
	}
	if known, ok := errors.AsType[*Error](err); ok {
		e := *known
		if e.Err = err; hint != "" {
			e.Hint = hint
		}
		return &e
	}
	return &Error{Class: class, Hint: hint, Err: err}
}

// Hint adds the next action to an error of a class.
func Hint(err error, format string, args ...any) error {
	return As(ClassOf(err), fmt.Sprintf(format, args...), err)
}

// Because gives an error a reason.
func Because(reason Reason, err error) error {
	if err == nil {
		return nil
	}
	e := As(ClassOf(err), "", err).(*Error)
	e.Reason = reason
	return e
}

// ReasonOf is the reason of the outermost Error in err's chain, or "".
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return ""
}

// Failure is the error of a run: the step that it ended at, and what was seen
// of it last.
type Failure struct {
	Step        string
	Observation Observation
	Err         error
}

func (f *Failure) Error() string { return f.Step + ": " + f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }

// ClassOf is the class of the outermost Error in err's chain; an error that
// nobody classified is Temporary, so that a run is tried again rather than
// given up for good on a fault that nobody thought of.
func ClassOf(err error) Class {
	if e, ok := errors.AsType[*Error](err); ok && e.Class != 0 {
		return e.Class
	}
	return Temporary
}

// HintOf is the outermost hint in err's chain, or "".
func HintOf(err error) string {
	for err != nil {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}

// setbackOf is what err says of the next try.
func setbackOf(err error) Setback {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return Setback{}
	}
	s := Setback{Busy: e.Busy, Failures: e.Failures, Drawn: e.Drawn}
	if !e.NotBefore.IsZero() {
		s.After = time.Until(e.NotBefore)
	}
	return s
}
