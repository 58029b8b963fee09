// Package cli is the command line that the device programs share.
//
// The rules of what they say, all in this package:
//
//   - standard output has the result: a line a step, a table, a certificate, or
//     JSON; standard error has the rest
//   - "error: " begins the one line that says why a program failed, "hint: "
//     the line that says what to do; "warning: " what is worse than it could be
//   - a sentence of ours begins in lower case and ends without a full stop
//   - the exit code is that of the error's class (pkg/step)
//   - no secret is ever written
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/reset"
	"github.com/tpm2cloud/tpm2cloud/pkg/status"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
	"github.com/tpm2cloud/tpm2cloud/pkg/systemd"
)

// Program is a device program.
type Program struct {
	Name    string
	Summary string // what it does, for the usage text
	Config  config.Program
	// Finishes says that the program does what a reset has left to a boot.
	Finishes bool
	// Open makes the program ready, on the TPM where it uses one.
	Open func(*config.Config) (Session, error)
	// Verbs are those beside status and the one without a name.
	Verbs []Verb
}

// Session is a program that is ready.
type Session struct {
	Steps []step.Step
	Clock func() clock.Clock // that certificates are judged at
	Close func() error
	// TPM tells what the steps have seen of the TPM, nil: nothing. A program
	// that does not look at the TPM has no such function.
	TPM func() *status.TPM
	// Verb does one of the program's own verbs.
	Verb func(verb string, out io.Writer) error
	// VerbSteps are the steps of a verb that has some.
	VerbSteps func(verb string) []step.Step
}

// Verb is a further thing that a program does.
type Verb struct {
	Name, Summary string
	Flags         func(*flag.FlagSet)
	// Steps: it has steps, which are run like the program's own.
	Steps bool
}

// ErrNo is how a verb answers a question that is asked for its exit code, which
// is 1 then; its text, if it has one, is on standard output.
var ErrNo = errors.New("no")

// command is one call of a program from a command line.
type command struct {
	name, summary  string
	provisions     bool   // without a verb
	verbs          []Verb // all of them
	stdout, stderr io.Writer
	journal        *systemd.Journal // nil: standard error is no journal
	dir, root      string           // of the configuration; dir is below root
	json           bool
}

// run is one call of a device program.
type run struct {
	command
	Program
	cfg    *config.Config
	last   step.Event        // the last step that ended
	named  *step.Certificate // the last one that a step was about
	record *record           // nil: this call provisions nothing
}

// Main runs a program and returns its exit code.
func Main(p Program, args []string, stdout, stderr io.Writer) int {
	r := &run{Program: p, command: command{
		name: p.Name, summary: p.Summary, provisions: true, stdout: stdout, stderr: stderr,
		verbs: append([]Verb{{Name: verbStatus, Summary: "show every step, change nothing"}}, p.Verbs...),
	}}
	return r.finish(func() error {
		err := r.main(args)
		r.record.end(err)
		return err
	})
}

const verbStatus = "status"

// finish does the work of a program and turns its error into lines and an exit
// code.
func (c *command) finish(work func() error) int {
	// Secrets are in this process's memory, and would be in its core dump.
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})

	c.journal = systemd.OpenJournal(c.name)
	defer c.journal.Flush()
	err := work()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case err == ErrNo:
		return 1
	}
	err = interrupted(err)
	c.report(err)
	return int(step.ClassOf(err))
}

// interrupted says in words what a cancelled context means here.
func interrupted(err error) error {
	if errors.Is(err, context.Canceled) {
		return step.Fail(step.Temporary, "interrupted by a signal; the next run goes on from here")
	}
	return err
}

func (r *run) main(args []string) error {
	verb, err := r.parse(args)
	if err != nil {
		return err
	}
	if verb == "" {
		r.record = r.newRecord()
	}
	if r.cfg, err = r.config(); err != nil {
		return err
	}
	if err := r.cfg.Check(r.Config); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the program at once, whatever it is at.
	context.AfterFunc(ctx, stop)
	if verb == "" || r.hasSteps(verb) {
		return r.provision(ctx, verb)
	}
	session, err := r.Open(r.cfg)
	if err != nil {
		return err
	}
	if verb == verbStatus {
		err = r.status(ctx, session)
	} else {
		err = session.Verb(verb, r.stdout)
	}
	if cerr := session.Close(); cerr != nil {
		return errors.Join(err, cerr)
	}
	return err
}

func (r *run) hasSteps(verb string) bool {
	return slices.ContainsFunc(r.Verbs, func(v Verb) bool { return v.Name == verb && v.Steps })
}

// config reads the configuration.
func (c *command) config() (*config.Config, error) {
	return config.Load(filepath.Join(c.root, c.dir), c.root)
}

// parse reads flags, verb and the verb's own flags. Flags of the program may
// stand behind the verb as well.
func (c *command) parse(args []string) (verb string, err error) {
	flags := flag.NewFlagSet(c.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&c.dir, "config", "/etc/tpm2cloud", "the directory of the configuration")
	flags.StringVar(&c.root, "root", "/", "the directory below which every absolute path of the configuration lies")
	flags.BoolVar(&c.json, "json", false, "write JSON")
	flags.Usage = func() {}
	usage := func(err error) error {
		if errors.Is(err, flag.ErrHelp) {
			c.usage(c.stdout, flags)
			return err
		}
		return step.As(step.Usage, c.name+" --help shows what there is", err)
	}
	if err := flags.Parse(args); err != nil {
		return "", usage(err)
	}
	if flags.NArg() == 0 && !c.provisions {
		return "", usage(errors.New("it takes a verb"))
	}
	if flags.NArg() > 0 {
		if verb, err = c.parseVerb(flags); err != nil {
			return "", usage(err)
		}
	}
	if !filepath.IsAbs(c.dir) {
		return "", step.Fail(step.Usage, "--config %s: an absolute path is wanted; it lies below --root", c.dir)
	}
	return verb, nil
}

func (c *command) parseVerb(flags *flag.FlagSet) (string, error) {
	verb, args := flags.Arg(0), flags.Args()[1:]
	i := slices.IndexFunc(c.verbs, func(v Verb) bool { return v.Name == verb })
	if i < 0 {
		return "", fmt.Errorf("there is no verb %q", verb)
	}
	own := flag.NewFlagSet(verb, flag.ContinueOnError)
	own.SetOutput(io.Discard)
	own.Usage = func() {}
	flags.VisitAll(func(f *flag.Flag) { own.Var(f.Value, f.Name, f.Usage) })
	if c.verbs[i].Flags != nil {
		c.verbs[i].Flags(own)
	}
	if err := own.Parse(args); err != nil {
		return "", err
	}
	if own.NArg() > 0 {
		return "", fmt.Errorf("%s takes no argument %q", verb, own.Arg(0))
	}
	return verb, nil
}

func (c *command) usage(w io.Writer, flags *flag.FlagSet) {
	fmt.Fprintf(w, "%s\n\n", c.summary)
	head := "usage: "
	line := func(what, summary string) {
		fmt.Fprintf(w, "%s%s [flags] %-9s %s\n", head, c.name, what, summary)
		head = "       "
	}
	if c.provisions {
		line("", "provision: bring every step to present")
	}
	for _, v := range c.verbs {
		line(v.Name, v.Summary)
	}
	fmt.Fprintf(w, "\nflags:\n")
	show := func(f *flag.Flag) {
		fmt.Fprintf(w, "  --%-10s %s", f.Name, f.Usage)
		if f.DefValue != "" && f.DefValue != "false" {
			fmt.Fprintf(w, " (%s)", f.DefValue)
		}
		fmt.Fprintln(w)
	}
	flags.VisitAll(show)
	for _, v := range c.verbs {
		if v.Flags == nil {
			continue
		}
		own := flag.NewFlagSet(v.Name, flag.ContinueOnError)
		v.Flags(own)
		fmt.Fprintf(w, "\nflags of %s:\n", v.Name)
		own.VisitAll(show)
	}
	fmt.Fprintf(w, "\nexit codes: 0 done; 64 usage; 65 refused (TPM, key or certificate is not what it must be);\n"+
		"  69 no TPM or token; 70 a defect; 75 gave up for now; 76 refused by the server; 77 permission; 78 configuration\n")
}

// provision runs the steps of the program or of a verb, one program of ours at a
// time.
func (r *run) provision(ctx context.Context, verb string) error {
	budget := time.Duration(r.cfg.Run.Budget)
	end := time.Now().Add(budget)
	systemd.Extend(budget + time.Minute)
	state := store.Open(r.cfg.Path(r.cfg.Run.State), 0o755)
	defer state.Close()
	lock, err := r.lock(ctx, state, end)
	if err != nil {
		r.record = nil // the place is the other's, who has the lock
		return err
	}
	defer lock.Unlock()
	if err := reset.Allow(state, r.Finishes); err != nil {
		return err
	}
	session, err := r.Open(r.cfg)
	if err != nil {
		return err
	}
	defer func() {
		// What the run has made stays, whatever could not be tidied up.
		if cerr := session.Close(); cerr != nil {
			r.warn("%v", cerr)
		}
	}()
	r.record.begin(session)
	now, err := r.await(ctx, session.Clock, end)
	if err != nil {
		return err
	}
	if !now.Verified {
		r.warn("clock unverified: %s", now.Why)
	}
	steps := session.Steps
	if verb != "" {
		steps = session.VerbSteps(verb)
	}
	runner := step.Runner{Steps: steps, Budget: time.Until(end).Round(time.Second), Notify: r.event}
	if err := runner.Run(ctx); err != nil {
		return err
	}
	r.ready()
	return nil
}

// lock waits for its turn, and says for whom.
func (r *run) lock(ctx context.Context, state *store.Dir, end time.Time) (*store.Lock, error) {
	for said := ""; ; {
		lock, err := state.TryLock("lock")
		locked, ok := errors.AsType[*store.LockedError](err)
		switch {
		case !ok:
			if errors.Is(err, os.ErrPermission) {
				err = step.As(step.Permission, "run as root", err)
			}
			return lock, err
		case time.Now().After(end):
			return nil, step.As(step.Temporary, "let that program end, or end it; systemctl status 'tpm2cloud-*' shows what the units wait for",
				fmt.Errorf("gave up for now, the budget of %s is spent: %w", time.Duration(r.cfg.Run.Budget), locked))
		}
		if now := locked.Error(); now != said {
			r.say(systemd.Notice, "", nil, "waiting: %s", now)
			systemd.Status("waiting: %s", now)
			said = now
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// await waits while the clock is ahead beyond belief: every certificate would
// be expired, and who sets such a clock right does it soon after the boot.
func (r *run) await(ctx context.Context, read func() clock.Clock, end time.Time) (clock.Clock, error) {
	for said := false; ; {
		now := read()
		err := now.Err()
		if err == nil || time.Now().Add(clockPoll).After(end) {
			return now, err
		}
		if !said {
			r.say(systemd.Warning, systemd.Waiting, nil, "waiting: %v", err)
			systemd.Status("waiting: %v", err)
			said = true
		}
		select {
		case <-time.After(clockPoll):
		case <-ctx.Done():
			return now, ctx.Err()
		}
	}
}

// clockPoll is how often the clock is read while it is waited for.
const clockPoll = time.Second

// event tells of one step.
func (r *run) event(e step.Event) {
	if !e.Done {
		r.record.retry(e)
		r.say(systemd.Warning, systemd.Waiting, map[string]string{"STEP": e.Step, "OBJECT": e.Observation.Object},
			"retry: %s: %v; again in %s", e.Step, e.Err, e.Wait.Round(100*time.Millisecond))
		systemd.Status("%s: %s; again in %s", e.Step, plain(e.Err.Error()), e.Wait.Round(time.Second))
		return
	}
	r.last = e
	r.record.done(e)
	if c := e.Observation.Certificate; c != nil {
		r.named = c
	}
	systemd.Status("%s: %s", e.Step, e.Observation.State)
	for _, w := range e.Observation.Warnings {
		r.warn("%s: %s", e.Step, w)
	}
	if r.json {
		r.writeJSON(struct {
			Step string `json:"step"`
			step.Observation
			Changed bool    `json:"changed"`
			Elapsed float64 `json:"elapsed_ms"`
		}{e.Step, e.Observation, e.Changed, float64(e.Elapsed.Microseconds()) / 1000})
		return
	}
	verdict := "unchanged"
	if e.Changed {
		verdict = "done"
	}
	if e.Observation.Waiting != "" {
		verdict = "waiting"
	}
	fmt.Fprintf(r.stdout, "%-18s  %-9s  %7.3f s  %s: %s\n", e.Step, verdict, e.Elapsed.Seconds(), e.Observation.Object, plain(said(e.Observation)))
}

// said is what an observation says in words: what is waited for comes first.
func said(o step.Observation) string {
	if o.Waiting != "" {
		return o.Waiting
	}
	return o.Detail
}

func (c *command) writeJSON(v any) {
	enc := json.NewEncoder(c.stdout)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // to our own standard output
}

// status shows every step.
func (r *run) status(ctx context.Context, session Session) error {
	rows, now := step.Observe(ctx, session.Steps), session.Clock()
	if r.json {
		r.writeJSON(struct {
			Program string     `json:"program"`
			Clock   clockState `json:"clock"`
			Steps   []step.Row `json:"steps"`
		}{r.Name, clockState{now.Verified, now.Time, now.Why}, rows})
	} else {
		for _, row := range rows {
			WriteRow(r.stdout, row, time.Time{})
		}
		if !now.Verified {
			fmt.Fprintf(r.stdout, "clock unverified: %s\n", now.Why)
		}
	}
	return step.Verdict(rows)
}

type clockState struct {
	Verified bool      `json:"verified"`
	Time     time.Time `json:"time"`
	Why      string    `json:"why,omitempty"` // it is not verified
}

// WriteRow writes what was seen of a step, for people, and since when it is so
// where that is known.
func WriteRow(w io.Writer, row step.Row, since time.Time) {
	text := said(row.Observation)
	if row.Error != "" {
		text = row.Error
	}
	if !since.IsZero() {
		text = strings.TrimLeft(text+" (since "+since.Format(time.RFC3339)+")", " ")
	}
	object := row.Object
	if object != "" && text != "" {
		object += ": "
	}
	fmt.Fprintf(w, "%-18s  %-8s  %s%s\n", row.Step, row.State, object, plain(text))
	if c := row.Certificate; c != nil {
		fmt.Fprintf(w, "%30s%s\n", "", plain(fmt.Sprintf("%s, by %s, until %s", c.CommonName, c.Issuer, c.NotAfter.Format(time.DateOnly))))
	}
	for _, warning := range row.Warnings {
		fmt.Fprintf(w, "%30swarning: %s\n", "", plain(warning))
	}
}
