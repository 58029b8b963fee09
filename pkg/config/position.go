package config

import (
	"errors"
	"fmt"
	"strings"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Error is one problem of a configuration. Several of them come joined (see
// [errors.Join]) in one error of the class [step.Configuration].
type Error struct {
	File string
	Line int    // 0 when no line of File is at fault: the key is missing, say
	Key  string // dotted, "idevid.enroll.server"; empty when the file itself is at fault
	Err  error
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cannot use %s: ", e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", e.Line)
	}
	if e.Key != "" {
		fmt.Fprintf(&b, "%s: ", e.Key)
	}
	b.WriteString(e.Err.Error())
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// position is a line of a file.
type position struct {
	file string
	line int
}

// positions tells which file and line had the last word on a key.
type positions struct {
	main string // the file where a key that nobody set may be set
	set  map[string]position
}

// problem is an Error at the place where key was set, or may be set.
func (p positions) problem(key string, err error) *Error {
	at, ok := p.set[key]
	if !ok {
		at.file = p.main
	}
	return &Error{File: at.file, Line: at.line, Key: key, Err: err}
}

// join makes one error of all problems; none is nil.
func join(problems []error) error {
	return step.As(step.Configuration, "correct the file; the comments in tpm2cloud.toml explain every key", errors.Join(problems...))
}
