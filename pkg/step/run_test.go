package step

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// fake is a step that goes through states, and fails as it is told.
type fake struct {
	states []State // of one Observe after the other; the last stays
	errs   []error // of one Act after the other; nil when there are no more
	obs    Observation
	looked int
	acted  int
}

func (*fake) Name() string { return "fake" }

func (f *fake) Observe(context.Context) (Observation, error) {
	obs := f.obs
	obs.State = f.states[min(f.looked, len(f.states)-1)]
	f.looked++
	return obs, nil
}

func (f *fake) Act(context.Context, Observation) error {
	f.acted++
	if f.acted <= len(f.errs) {
		return f.errs[f.acted-1]
	}
	return nil
}

func run(t *testing.T, budget time.Duration, steps ...Step) (events []Event, took time.Duration, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		r := Runner{Steps: steps, Budget: budget, Notify: func(e Event) { events = append(events, e) }}
		err = r.Run(t.Context())
		took = time.Since(begin)
	})
	return events, took, err
}

func TestRunPresent(t *testing.T) {
	f := &fake{states: []State{Present}}
	events, _, err := run(t, time.Minute, f)
	if err != nil || f.acted != 0 || f.looked != 1 || len(events) != 1 || events[0].Changed {
		t.Errorf("%v: %d moves after %d looks, %+v", err, f.acted, f.looked, events)
	}
}

// Present is what Observe says after the move, not what Act says of itself.
func TestRunLooksAgain(t *testing.T) {
	f := &fake{states: []State{Missing, Partial, Present}}
	events, _, err := run(t, time.Minute, f)
	if err != nil || f.acted != 2 || f.looked != 3 || !events[0].Changed {
		t.Errorf("%v: %d moves after %d looks", err, f.acted, f.looked)
	}
	f = &fake{states: []State{Missing}}
	if _, _, err := run(t, time.Minute, f); ClassOf(err) != Software || f.acted != maxMoves {
		t.Errorf("a step that does not converge: %v after %d moves", err, f.acted)
	}
}

// A lost answer: the move was made, and is not made again.
func TestRunLooksBeforeItTriesAgain(t *testing.T) {
	f := &fake{states: []State{Missing, Present}, errs: []error{errors.New("answer lost")}}
	events, _, err := run(t, time.Minute, f)
	if err != nil || f.acted != 1 || f.looked != 2 || len(events) != 2 || events[0].Err == nil || !events[1].Done {
		t.Errorf("%v: %d moves after %d looks, %+v", err, f.acted, f.looked, events)
	}
}

func TestRunEndsAtOnce(t *testing.T) {
	for _, class := range []Class{Refused, Unavailable, ServerRefused, Permission, Configuration, Software} {
		f := &fake{states: []State{Missing}, errs: []error{fmt.Errorf("outer: %w", Fail(class, "no"))}}
		if _, took, err := run(t, time.Minute, f); ClassOf(err) != class || f.acted != 1 || took != 0 {
			t.Errorf("%d: %v after %d moves and %s", class, err, f.acted, took)
		}
	}
	f := &fake{states: []State{Conflict}, obs: Observation{Object: "0x1", Detail: "foreign", Hint: "remove it"}}
	if _, _, err := run(t, time.Minute, f); ClassOf(err) != Refused || f.acted != 0 || HintOf(err) != "remove it" {
		t.Errorf("a conflict: %v, hint %q, %d moves", err, HintOf(err), f.acted)
	}
}

// The budget is the end of all waiting, and the error is the last cause.
func TestRunBudget(t *testing.T) {
	cause := errors.New("no route to host")
	f := &fake{states: []State{Missing}, errs: make([]error, 1000)}
	for i := range f.errs {
		f.errs[i] = cause
	}
	_, took, err := run(t, 10*time.Minute, f)
	if ClassOf(err) != Temporary || !errors.Is(err, cause) || took > 10*time.Minute {
		t.Errorf("%v after %s", err, took)
	}
	if f.acted < 8 || f.acted > 60 {
		t.Errorf("%d tries in ten minutes", f.acted)
	}
	// It is for the whole run, not for each step.
	late := &fake{states: []State{Missing}, errs: f.errs}
	first := &fake{states: []State{Missing, Missing, Present}, errs: []error{&Error{NotBefore: time.Now().Add(time.Hour), Err: cause}}}
	if _, took, err := run(t, time.Minute, first, late); err == nil || took > time.Minute || late.acted != 0 {
		t.Errorf("%v after %s", err, took)
	}
}

// A try that the end of the budget cut off has no cause of its own: the one before it has.
func TestRunKeepsTheCause(t *testing.T) {
	cause := Hint(errors.New("no route to host"), "look at the cable")
	f := &slow{fake{states: []State{Missing}, errs: []error{cause}}}
	_, took, err := run(t, time.Minute, f)
	if !errors.Is(err, cause) || ClassOf(err) != Temporary || HintOf(err) != "look at the cable" || took != time.Minute {
		t.Errorf("%v (%s) after %s", err, HintOf(err), took)
	}
}

// slow is a step that can be looked at once only before the time is over.
type slow struct{ fake }

func (s *slow) Observe(ctx context.Context) (Observation, error) {
	if s.looked > 0 {
		<-ctx.Done()
		return Observation{}, ctx.Err()
	}
	return s.fake.Observe(ctx)
}

// What the server says about the time is kept: not before it, and soon after.
func TestRunNotBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := time.Now().Add(30 * time.Second)
		f := &fake{states: []State{Missing, Missing, Present}, errs: []error{&Error{NotBefore: at, Err: errors.New("503")}}}
		r := Runner{Steps: []Step{f}, Budget: 2 * time.Minute}
		if err := r.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if late := time.Since(at); late < 0 || late > 30*time.Second {
			t.Errorf("tried again %s after the time", late)
		}
	})
}

func TestRunWaiting(t *testing.T) {
	f := &fake{states: []State{Partial}, obs: Observation{Waiting: "the agent is not installed"}}
	next := &fake{states: []State{Present}}
	if _, _, err := run(t, time.Minute, f, next); err != nil || f.acted != 0 || next.looked != 1 {
		t.Errorf("%v: %d moves", err, f.acted)
	}
}

func TestRunCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f := &fake{states: []State{Missing}, errs: []error{context.Canceled}}
	r := Runner{Steps: []Step{f}, Budget: time.Minute}
	if err := r.Run(ctx); !errors.Is(err, context.Canceled) || f.acted > 1 {
		t.Errorf("%v after %d moves", err, f.acted)
	}
}

// Each device draws its own waits.
func TestRunJitter(t *testing.T) {
	waits := map[time.Duration]bool{}
	for range 20 {
		f := &fake{states: []State{Missing, Present}, errs: []error{errors.New("busy")}}
		events, _, err := run(t, time.Minute, f)
		if err != nil {
			t.Fatal(err)
		}
		waits[events[0].Wait] = true
	}
	if len(waits) < 15 {
		t.Errorf("20 devices wait %d different times", len(waits))
	}
}

// postponed is a step that keeps when to try again.
type postponed struct {
	fake
	until    time.Time
	failures int
	err      error
}

func (p *postponed) Postpone(until time.Time, failures int) error {
	p.until, p.failures = until, failures
	return p.err
}

// What is to be waited for longer than the run may last is left to the next run;
// but not what nobody has said, nor a second time.
func TestRunPostpones(t *testing.T) {
	for name, test := range map[string]struct {
		err      Error
		fail     error
		failures int // that the step is told; 0: it is not
		at, span time.Duration
	}{
		"told":              {err: Error{Busy: true, NotBefore: epoch.Add(3 * time.Hour)}, failures: 1, at: 3 * time.Hour, span: 3 * time.Hour / 8},
		"told again":        {err: Error{Busy: true, NotBefore: epoch.Add(3 * time.Hour), Failures: 2}, failures: 3, at: 3 * time.Hour, span: 3 * time.Hour / 8},
		"not told, but":     {err: Error{Busy: true, Failures: 40}, failures: 41, span: time.Hour},
		"disk full":         {err: Error{Busy: true, NotBefore: epoch.Add(3 * time.Hour)}, fail: errors.New("disk full"), failures: 1, at: 3 * time.Hour, span: 3 * time.Hour / 8},
		"of an earlier run": {err: Error{Busy: true, Drawn: true, NotBefore: epoch.Add(3 * time.Hour), Failures: 7}},
		"no answer":         {err: Error{NotBefore: epoch.Add(3 * time.Hour)}},
	} {
		t.Run(name, func(t *testing.T) {
			test.err.Err, test.err.Hint = errors.New("503"), "wait"
			// So late in its budget that a wait that was drawn is too long.
			p := &postponed{fake: fake{states: []State{Missing}, errs: []error{&test.err}}, err: test.fail}
			synctest.Test(t, func(t *testing.T) {
				r := Runner{Steps: []Step{p}, Budget: time.Minute, Draw: func(limit time.Duration) time.Duration { return limit }}
				err := r.Run(t.Context())
				if ClassOf(err) != Temporary || HintOf(err) != "wait" || !errors.Is(err, test.err.Err) || test.fail != nil && !errors.Is(err, test.fail) {
					t.Errorf("got %v, hint %q", err, HintOf(err))
				}
			})
			if p.acted != 1 || p.failures != test.failures || test.failures > 0 && !p.until.Equal(epoch.Add(test.at+test.span)) {
				t.Errorf("%d tries, %d failures until %s", p.acted, p.failures, p.until)
			}
		})
	}
}

// epoch is when time begins in a bubble of synctest.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// What an earlier run has drawn is not drawn anew: the wait ends when it said.
func TestRunKeepsWhatWasDrawn(t *testing.T) {
	drawn := &Error{Busy: true, Drawn: true, NotBefore: epoch.Add(5 * time.Minute), Failures: 3, Err: errors.New("not yet")}
	f := &fake{states: []State{Missing, Missing, Present}, errs: []error{drawn}}
	events, took, err := run(t, 10*time.Minute, f)
	if err != nil || took != 5*time.Minute || events[0].Wait != took {
		t.Errorf("%v after %s", err, took)
	}
}

func TestErrors(t *testing.T) {
	inner := As(Refused, "inner", errors.New("cause"))
	for _, test := range []struct {
		err   error
		class Class
		hint  string
	}{
		{errors.New("plain"), Temporary, ""},
		{inner, Refused, "inner"},
		{fmt.Errorf("more: %w", inner), Refused, "inner"},
		{As(Configuration, "", inner), Refused, "inner"},
		{As(Configuration, "outer", inner), Refused, "outer"},
		{Hint(inner, "%s", "other"), Refused, "other"},
		{errors.Join(errors.New("first"), inner), Refused, "inner"},
		{Fail(Permission, "no"), Permission, ""},
	} {
		if got := ClassOf(test.err); got != test.class {
			t.Errorf("%v: class %d, want %d", test.err, got, test.class)
		}
		if got := HintOf(test.err); got != test.hint {
			t.Errorf("%v: hint %q, want %q", test.err, got, test.hint)
		}
	}
	all := &Error{Class: Temporary, NotBefore: epoch, Busy: true, Failures: 2, Drawn: true, Hint: "old", Reason: NoTPM}
	got := As(Refused, "new", fmt.Errorf("more: %w", all)).(*Error)
	all.Hint, all.Err = "new", got.Err
	if *got != *all {
		t.Errorf("an error that is classified already becomes %+v", *got)
	}
	if As(Refused, "hint", nil) != nil {
		t.Error("no error was made one")
	}
}
