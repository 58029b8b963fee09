package reset

import (
	"context"
	"fmt"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// Step takes one thing away. It is a [step.Step] whose object is the absence of
// the thing, except for the name of its move: so a program that only looks at
// the other steps and does these does not link what provisions.
type Step interface {
	Name() string
	Observe(context.Context) (step.Observation, error)
	// Remove makes one move; it may be cut anywhere.
	Remove(context.Context) error
}

// Observe looks at every step and changes nothing.
func Observe(ctx context.Context, steps []Step) ([]step.Row, error) {
	rows := make([]step.Row, 0, len(steps))
	for _, s := range steps {
		obs, err := s.Observe(ctx)
		if err != nil {
			return nil, &step.Failure{Step: s.Name(), Observation: obs, Err: err}
		}
		rows = append(rows, step.Row{Step: s.Name(), Observation: obs})
	}
	return rows, nil
}

// Run keeps the note and does the steps, telling of each that it has done, and
// whether there was something to do. In the end the note is gone as well, or it
// says what waits for the next boot; that is the result. Run may be cut
// anywhere, and called again. It tries nothing twice: somebody waits for it.
func Run(ctx context.Context, state *store.Dir, n *Note, steps []Step, done func(row step.Row, removed bool)) (atBoot bool, err error) {
	if err := n.Write(state); err != nil {
		return false, err
	}
	for _, s := range steps {
		obs, removed, err := remove(ctx, s)
		if err != nil {
			return false, &step.Failure{Step: s.Name(), Observation: obs, Err: err}
		}
		atBoot = atBoot || obs.Waiting != ""
		done(step.Row{Step: s.Name(), Observation: obs}, removed)
	}
	if atBoot {
		n.AtBoot = true
		return true, n.Write(state)
	}
	return false, state.Remove(File)
}

// maxMoves is more than any step has.
const maxMoves = 4

// remove observes and moves until the thing is gone, or waits.
func remove(ctx context.Context, s Step) (obs step.Observation, removed bool, err error) {
	for range maxMoves {
		if err := ctx.Err(); err != nil {
			return obs, removed, err
		}
		if obs, err = s.Observe(ctx); err != nil || obs.State == step.Present || obs.Waiting != "" {
			return obs, removed, err
		}
		if err = s.Remove(ctx); err != nil {
			return obs, removed, err
		}
		removed = true
	}
	return obs, removed, step.As(step.Software, "", fmt.Errorf("%s is still there after %d moves", obs.Object, maxMoves))
}
