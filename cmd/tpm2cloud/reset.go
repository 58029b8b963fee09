package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/tpm2cloud/tpm2cloud/pkg/check"
	"github.com/tpm2cloud/tpm2cloud/pkg/cli"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/operator"
	"github.com/tpm2cloud/tpm2cloud/pkg/reset"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
	"github.com/tpm2cloud/tpm2cloud/pkg/systemd"
)

// resetOptions are those of the verb reset.
type resetOptions struct{ owner, all, yes bool }

// units are stopped by a reset: as long as they are active, a start of the
// target would make nothing new. The timer would start it all by itself.
var units = []string{"tpm2cloud-retry.timer", "tpm2cloud-renew.timer", "tpm2cloud.target", "tpm2cloud-edgecfg.service", "tpm2cloud-ldevid.service", "tpm2cloud-idevid.service"}

// reset takes the owner's identity away, or all.
func (o *options) reset(ctx context.Context, call *cli.Call) error {
	if o.owner && o.all {
		return step.As(step.Usage, "tpm2cloud --help shows what there is", errors.New("reset takes --ldevid or --all, not both"))
	}
	cfg, err := call.Config()
	if err != nil {
		return err
	}
	state := store.Open(cfg.Path(cfg.Run.State), 0o755)
	defer state.Close()
	lock, err := state.TryLock("lock")
	if err != nil {
		return mayNotLock(err)
	}
	defer lock.Unlock()
	earlier, scope, err := o.scope(state)
	if err != nil {
		return err
	}
	subject := check.Open(cfg)
	defer subject.Close()
	steps, err := operator.Removal(subject, scope)
	if err != nil {
		return err
	}
	revoke, kept, err := operator.Certificates(subject, scope)
	if err != nil {
		return err
	}
	resets, err := subject.TPM.Resets()
	if err != nil {
		return err
	}
	note := reset.New(scope, revoke, kept, resets, earlier)
	if err := o.announce(ctx, call, note, steps); err != nil {
		return err
	}
	// Whoever interrupts it up to here has changed nothing.
	if ctx.Err() != nil {
		return step.As(step.Temporary, "", errors.New("nothing was changed: interrupted by a signal"))
	}
	if onThisSystem(cfg) {
		// The note comes first: a run that is ended in the middle, or starts now,
		// must not find half an identity and no note.
		if err := note.Write(state); err != nil {
			return err
		}
		// Of a signal meanwhile reset.Run tells, before its first move.
		if err := systemd.Stop(ctx, units...); err != nil && ctx.Err() == nil {
			return err
		}
	}
	atBoot, err := reset.Run(ctx, state, note, steps, func(row step.Row, removed bool) { tell(call, row, removed) })
	if errors.Is(err, context.Canceled) {
		return step.As(step.Temporary, "tpm2cloud reset --yes goes on with it", errors.New("the reset was interrupted by a signal"))
	}
	if err != nil {
		return step.Hint(fmt.Errorf("the reset is not finished: %w", err), "%s", strings.TrimPrefix(step.HintOf(err)+"; then tpm2cloud reset --yes goes on with it", "; then "))
	}
	conclude(call, note, atBoot)
	return nil
}

func onThisSystem(cfg *config.Config) bool {
	return (cfg.Root() == "" || cfg.Root() == "/") && systemd.Running()
}

func mayNotLock(err error) error {
	_, held := errors.AsType[*store.LockedError](err)
	switch {
	case held:
		return step.As(step.Temporary, "wait until it has ended, or stop it: systemctl stop tpm2cloud-retry.timer "+strings.Join(units[3:], " "), err)
	case errors.Is(err, os.ErrPermission):
		return step.As(step.Permission, "run as root", err)
	}
	return err
}

// scope is what was asked for now, or by a reset that was not finished.
func (o *options) scope(state *store.Dir) (earlier *reset.Note, scope reset.Scope, err error) {
	earlier, err = reset.Read(state)
	switch {
	case o.all:
		scope = reset.All
	case o.owner:
		scope = reset.Owner
	case err != nil:
		return nil, "", err
	case earlier != nil:
		return earlier, earlier.Scope, nil
	default:
		return nil, "", step.As(step.Usage, "tpm2cloud --help shows what there is", errors.New("reset takes --ldevid or --all"))
	}
	// A note that cannot be read is replaced by what is asked for now.
	return earlier, scope, nil
}

// announce says what a reset will do, and asks.
func (o *options) announce(ctx context.Context, call *cli.Call, note *reset.Note, steps []reset.Step) error {
	rows, err := reset.Observe(ctx, steps)
	if err != nil {
		return err
	}
	var kept, later []string
	w := call.Out
	if call.JSON {
		w = io.Discard
	}
	fmt.Fprintf(w, "This takes away the identity of the owner%s:\n", map[reset.Scope]string{reset.All: " and that of the manufacturer"}[note.Scope])
	nothing := true
	for _, row := range rows {
		kept = append(kept, row.Warnings...)
		switch {
		case row.Waiting != "":
			later = append(later, fmt.Sprintf("%s: %s", row.Object, row.Detail))
			continue
		case row.State == step.Present:
			continue
		}
		nothing = false
		fmt.Fprintf(w, "  %-18s  %s\n", row.Step, strings.TrimSuffix(row.Object+": "+row.Detail, ": "))
	}
	if nothing {
		fmt.Fprintln(w, "  nothing is there")
	}
	if len(later) > 0 {
		fmt.Fprintln(w, "At the next boot, when the platform hierarchy is open, tpm2cloud-idevid takes away, and then makes a new identity\nas it is configured:")
		for _, line := range later {
			fmt.Fprintf(w, "  %s\n", line)
		}
	}
	for _, line := range append(kept, "kept: /etc/tpm2cloud with its credentials; change them for the next owner") {
		fmt.Fprintf(w, "%s\n", line)
	}
	if note.Scope == reset.Owner {
		fmt.Fprintln(w, "kept: the IDevID")
	}
	if o.yes {
		return nil
	}
	fmt.Fprint(w, "Go on? [y/N] ")
	answer, err := readAnswer(ctx, call.In)
	fmt.Fprintln(w)
	if err != nil || ctx.Err() != nil {
		return err // who asked sees to an interruption
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return step.As(step.Usage, "--yes says so beforehand", errors.New("nothing was changed: nobody said yes"))
	}
	return nil
}

// readAnswer reads a line that somebody types, or none where a signal comes first: the
// context takes the signal, and the read alone would go on.
func readAnswer(ctx context.Context, in io.Reader) (string, error) {
	type typed struct {
		line string
		err  error
	}
	lines := make(chan typed, 1)
	go func() {
		line, err := bufio.NewReader(in).ReadString('\n')
		lines <- typed{line, err}
	}()
	select {
	case <-ctx.Done():
		return "", nil
	case t := <-lines:
		if errors.Is(t.err, io.EOF) {
			t.err = nil
		}
		return t.line, t.err
	}
}

// tell tells of a step.
func tell(call *cli.Call, row step.Row, removed bool) {
	switch {
	case call.JSON:
	case row.Waiting != "":
		fmt.Fprintf(call.Out, "%-18s  waits     %s: %s\n", row.Step, row.Object, row.Waiting)
	case removed:
		fmt.Fprintf(call.Out, "%-18s  removed\n", row.Step)
	}
}

// conclude says what is left to be done.
func conclude(call *cli.Call, note *reset.Note, atBoot bool) {
	if call.JSON {
		call.WriteJSON(struct {
			Scope  reset.Scope         `json:"scope"`
			AtBoot bool                `json:"at_boot"`
			Revoke []reset.Certificate `json:"revoke"`
		}{note.Scope, atBoot, note.Revoke})
		return
	}
	if len(note.Revoke) > 0 {
		fmt.Fprintln(call.Out, "\nA reset does not revoke. Their keys are gone, and these certificates are valid still; tell their CAs, and remove\nthe device from the cloud:")
	}
	for _, c := range note.Revoke {
		fmt.Fprintf(call.Out, "  %s\n", c)
	}
	if atBoot {
		fmt.Fprintln(call.Out, "\nIt is finished at the next boot; until then nothing is provisioned. tpm2cloud reset --ldevid --yes takes that back.")
		return
	}
	fmt.Fprintln(call.Out, "\nThe next boot, or systemctl start tpm2cloud.target, provisions the device anew, as it is configured.")
}
