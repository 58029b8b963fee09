package step

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Event is what a run tells while it goes on.
type Event struct {
	Step string
	// Observation is what the step ended with, or what it was tried on.
	Observation Observation
	// Changed is true when the step made a move in this run.
	Changed bool
	// Elapsed is the time that the step took.
	Elapsed time.Duration
	// Err is set when a try failed and another follows after Wait.
	Err  error
	Wait time.Duration
	// Done is true for the last event of a step.
	Done bool
}

// Runner runs steps in their order.
type Runner struct {
	Steps []Step
	// Budget is the time for the whole run, waiting included.
	Budget time.Duration
	// Draw is that of [Waits].
	Draw func(limit time.Duration) time.Duration
	// Notify is told of each step that ended and of each failed try.
	Notify func(Event)
}

// Row is the observation of one step, as status and the last lines of a run
// show it.
type Row struct {
	Step string `json:"step"`
	Observation
	// Error is why Observe could not tell.
	Error string `json:"error,omitempty"`
	Err   error  `json:"-"`
}

// Run brings every step to Present, or stops at the first that cannot be.
func (r *Runner) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.Budget)
	defer cancel()
	deadline, _ := ctx.Deadline()
	for _, s := range r.Steps {
		if obs, err := r.run(ctx, s, deadline); err != nil {
			return &Failure{s.Name(), obs, err}
		}
	}
	return nil
}

func (r *Runner) run(ctx context.Context, s Step, deadline time.Time) (Observation, error) {
	begin := time.Now()
	waits := Waits{Draw: r.Draw}
	changed := false
	var last error // of the try before
	for {
		obs, acted, err := once(ctx, s)
		if err == context.DeadlineExceeded && last != nil {
			err = last // the end of the budget says less
		}
		changed = changed || acted
		if err == nil {
			r.notify(Event{Step: s.Name(), Observation: obs, Changed: changed, Elapsed: time.Since(begin), Done: true})
			return obs, nil
		}
		if ClassOf(err) != Temporary || errors.Is(err, context.Canceled) {
			return obs, err
		}
		setback := setbackOf(err)
		wait, inTime := waits.Next(setback, time.Until(deadline))
		if !inTime {
			if setback.Busy && !setback.Drawn {
				err = errors.Join(err, postpone(s, time.Now().Add(wait), setback.Failures+waits.Failures()))
			}
			return obs, r.gaveUp(err)
		}
		r.notify(Event{Step: s.Name(), Observation: obs, Elapsed: time.Since(begin), Err: err, Wait: wait})
		last = err
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			if ctx.Err() == context.DeadlineExceeded {
				return obs, r.gaveUp(err)
			}
			return obs, ctx.Err()
		}
	}
}

// postpone has a step keep when the next try is worth it, if it can.
func postpone(s Step, until time.Time, failures int) error {
	if p, ok := s.(Postponer); ok {
		return p.Postpone(until, failures)
	}
	return nil
}

// gaveUp is the error of a run whose time is over.
func (r *Runner) gaveUp(err error) error {
	return &Error{Class: Temporary, Hint: HintOf(err), Reason: ReasonOf(err),
		Err: fmt.Errorf("gave up for now, the budget of %s is spent: %w", r.Budget, err)}
}

// maxMoves bounds the moves of one try: a step whose object takes more than a
// few (create, load, persist) is one that does not converge.
const maxMoves = 8

// once observes and acts until the step is Present.
func once(ctx context.Context, s Step) (obs Observation, acted bool, err error) {
	for range maxMoves {
		if err := ctx.Err(); err != nil {
			return obs, acted, err
		}
		obs, err = s.Observe(ctx)
		if err != nil {
			obs.State = Unknown
			return obs, acted, err
		}
		switch {
		case obs.State == Present, obs.State == Partial && obs.Waiting != "":
			return obs, acted, nil
		case obs.State == Conflict:
			return obs, acted, &Error{Class: Refused, Hint: obs.Hint, Reason: obs.Reason,
				Err: fmt.Errorf("cannot use %s: %s", obs.Object, obs.Detail)}
		}
		if err = s.Act(ctx, obs); err != nil {
			return obs, true, err
		}
		acted = true
	}
	return obs, acted, Fail(Software, "%s is still %s after %d moves: %s", obs.Object, obs.State, maxMoves, obs.Detail)
}

func (r *Runner) notify(e Event) {
	if r.Notify != nil {
		r.Notify(e)
	}
}

// Observe looks at every step and changes nothing. It does not stop at a step
// that cannot be observed: a technician wants the rest of the table.
func Observe(ctx context.Context, steps []Step) []Row {
	rows := make([]Row, 0, len(steps))
	for _, s := range steps {
		obs, err := s.Observe(ctx)
		row := Row{Step: s.Name(), Observation: obs, Err: err}
		if err != nil {
			row.State, row.Error = Unknown, err.Error()
		}
		rows = append(rows, row)
	}
	return rows
}

// Verdict is nil when every row is present, or waits for somebody else; else it
// is the error of the first row that is not.
func Verdict(rows []Row) error {
	for _, row := range rows {
		if row.Err != nil {
			return fmt.Errorf("%s: %w", row.Step, row.Err)
		}
		if row.State != Present && row.Waiting == "" {
			class := Temporary
			if row.State == Conflict {
				class = Refused
			}
			return &Error{Class: class, Hint: row.Hint, Err: fmt.Errorf("%s is %s", row.Step, row.State)}
		}
	}
	return nil
}
