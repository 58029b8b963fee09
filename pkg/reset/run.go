package reset

import (
	"context"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// budget is for a whole reset, which somebody waits for. The longest part are the
// agent's services, which stop their modules first.
const budget = 3 * time.Minute

// Run keeps the note and does the steps, of which each is present when its
// object is gone. In the end the note is gone as well, or it says what waits for
// the next boot; that is the result. It may be cut anywhere, and run again.
func Run(ctx context.Context, state *store.Dir, n *Note, steps []step.Step, notify func(step.Event)) (atBoot bool, err error) {
	if err := n.Write(state); err != nil {
		return false, err
	}
	runner := step.Runner{Steps: steps, Budget: budget, Notify: func(e step.Event) {
		atBoot = atBoot || e.Done && e.Observation.Waiting != ""
		notify(e)
	}}
	if err := runner.Run(ctx); err != nil {
		return false, err
	}
	if atBoot {
		n.AtBoot = true
		return true, n.Write(state)
	}
	return false, state.Remove(File)
}
