package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/systemd"
)

// say writes a line to standard error, or to the journal, with its fields,
// where that is the same.
func (c *command) say(priority systemd.Priority, event systemd.Event, fields map[string]string, format string, args ...any) {
	line := plain(fmt.Sprintf(format, args...))
	if !c.journal.Send(priority, event, line, fields) {
		fmt.Fprintln(c.stderr, line)
	}
}

// warn tells of what is worse than it could be.
func (c *command) warn(format string, args ...any) {
	c.say(systemd.Warning, "", nil, "warning: "+format, args...)
}

// report tells why the run failed, and what to do.
func (c *command) report(err error) {
	fields := map[string]string{"EXIT_CODE": strconv.Itoa(int(step.ClassOf(err))), "HINT": step.HintOf(err)}
	if failure, ok := errors.AsType[*step.Failure](err); ok {
		fields["STEP"] = failure.Step
	}
	// Several problems are several lines, each of them an error's.
	for line := range strings.Lines(err.Error()) {
		c.say(systemd.Error, eventOf(err), fields, "error: %s", strings.TrimSuffix(line, "\n"))
	}
	if hint := step.HintOf(err); hint != "" {
		c.say(systemd.Error, "", nil, "hint: %s", hint)
	}
	systemd.Status("%s", plain(err.Error()))
}

// maxLine is what a line may have, in bytes.
const maxLine = 2000

// plain makes a line of a text in which others had a hand, as the name of a
// certificate is: a terminal obeys nothing in it, and it has an end.
func plain(text string) string {
	if len(text) > maxLine {
		text = strings.ToValidUTF8(text[:maxLine-len("…")], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

// eventOf is what the journal's catalog knows an error as.
func eventOf(err error) systemd.Event {
	switch step.ReasonOf(err) {
	case step.NoTPM:
		return systemd.NoTPM
	case step.NotGenuine:
		return systemd.NotGenuine
	case step.OtherTPM:
		return systemd.OtherTPM
	}
	switch step.ClassOf(err) {
	case step.ServerRefused:
		return systemd.ServerRefused
	case step.Temporary:
		return systemd.GaveUp
	}
	return systemd.CannotGoOn
}

// ready tells the journal, and nobody else, that every step is present: on a
// terminal the lines of the steps say so.
func (r *run) ready() {
	o := r.last.Observation
	fields := map[string]string{"STEP": r.last.Step, "OBJECT": o.Object}
	line := plain(fmt.Sprintf("ready: %s: %s", o.Object, o.Detail))
	if c := r.named; c != nil {
		line = plain(fmt.Sprintf("ready: %s, by %s, until %s", c.CommonName, c.Issuer, c.NotAfter.Format(time.DateOnly)))
		fields["COMMON_NAME"], fields["ISSUER"], fields["NOT_AFTER"], fields["SHA256"] = c.CommonName, c.Issuer, c.NotAfter.Format(time.RFC3339), c.SHA256
	}
	if o.Waiting != "" {
		line += "; " + o.Waiting
	}
	r.journal.Send(systemd.Notice, systemd.Ready, line, fields)
	systemd.Status("%s", line)
}
