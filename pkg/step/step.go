// Package step runs a program as an ordered list of steps, each of which looks
// at the world, makes one move, and looks again.
//
// A [Step] has no memory of what it did: the truth is the TPM and the files.
// (What Observe has just seen it may keep for the Act that follows.)
// [Step.Observe] says how the step's object stands, [Step.Act] moves it
// towards [Present], and only a second Observe that says Present ends the
// step. One definition of "good" so serves a first run, a run after a power
// cut, a second run that changes nothing, and the status command.
//
// A step that fails is tried again, observation first, because a lost answer
// may mean that the move was made. How an error ends a run is a property of
// the error: see [Error] and [Class].
//
// The package imports nothing else of this project.
package step

import (
	"context"
	"time"
)

// State is how the object of a step stands.
type State int

const (
	// Missing: there is nothing yet.
	Missing State = iota
	// Partial: some of it is there; Act goes on from where it was cut.
	Partial
	// Present: all is as it must be; Act has nothing to do.
	Present
	// Orphan: an object of ours whose other half is lost for good (an LDevID
	// whose token died with the old disk). Act replaces it where the
	// configuration allows that.
	Orphan
	// Conflict: something that is not ours stands in the place. Nobody
	// touches it; the run ends.
	Conflict
	// Unknown: Observe could not tell, or not yet. A run never sees it.
	Unknown
)

func (s State) String() string {
	switch s {
	case Missing:
		return "missing"
	case Partial:
		return "partial"
	case Present:
		return "present"
	case Orphan:
		return "orphan"
	case Conflict:
		return "conflict"
	}
	return "unknown"
}

// MarshalText makes a State a word in JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads that word; one that is not known is Unknown.
func (s *State) UnmarshalText(text []byte) error {
	for *s = Missing; *s < Unknown; *s++ {
		if s.String() == string(text) {
			break
		}
	}
	return nil
}

// An Observation is what Observe saw.
type Observation struct {
	State State `json:"state"`
	// Object names the thing: a handle, an NV index, a path.
	Object string `json:"object"`
	// Detail says in a few words what it is, or what is wrong with it.
	Detail string `json:"detail,omitempty"`
	// Warnings are degraded modes that a fleet owner should know of: the
	// step is as good as it can be here, but not as good as it could be.
	Warnings []string `json:"warnings,omitempty"`
	// Certificate describes the certificate that the step is about.
	Certificate *Certificate `json:"certificate,omitempty"`
	// Waiting is set on a Partial observation when all that this program can
	// do is done and the rest is for somebody else: what that is. The run goes
	// on and ends well, and the next run looks again.
	Waiting string `json:"waiting,omitempty"`
	// Hint is the next action for a technician where State is Conflict.
	Hint string `json:"hint,omitempty"`
	// Reason is set on the few conflicts that have one.
	Reason Reason `json:"reason,omitempty"`
}

// Certificate is what a table of identities shows of a certificate.
type Certificate struct {
	CommonName   string    `json:"common_name"`
	SerialNumber string    `json:"serial_number,omitempty"` // of the subject, X.520
	Issuer       string    `json:"issuer"`
	NotBefore    time.Time `json:"not_before"`
	NotAfter     time.Time `json:"not_after"`
	SHA256       string    `json:"sha256"` // hex of the DER's digest
}

// WaitsFor is what a step sees whose object can only be judged when another
// step is present. A run never meets it; the status does.
func WaitsFor(object, step string) Observation {
	return Observation{State: Unknown, Object: object, Detail: "waits for " + step}
}

// Step is one row of a program.
type Step interface {
	// Name is the step's name in the status, the journal and the tests.
	Name() string
	// Observe only reads. It returns an error when it cannot tell.
	Observe(context.Context) (Observation, error)
	// Act makes one move towards Present. It may be cut anywhere.
	Act(context.Context, Observation) error
}

// Postponer is a Step that keeps for later runs when another try is worth it,
// and how often the other side was busy, where this one gives up. The next run is
// told by the fields of [Error].
type Postponer interface {
	Step
	Postpone(until time.Time, failures int) error
}
