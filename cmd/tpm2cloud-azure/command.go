package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	azarm "github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/answer"
	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/arm"
	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/clouds"
	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/deployment"
	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/dps"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// command is one call. Standard output has the result, standard error the rest.
type command struct {
	*options
	stdin          io.Reader
	stdout, stderr io.Writer
}

func (c *command) run(ctx context.Context, args []string) error {
	v, o, err := parse(args, c.stdout)
	if err != nil {
		return err
	}
	c.options = o
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	d, err := c.open(ctx)
	switch {
	case err != nil:
		return err
	case v.name == "status":
		return c.status(ctx, d)
	case v.name == "destroy":
		return c.destroy(ctx, d)
	case c.dryRun:
		return c.plan(ctx, d)
	}
	return c.deploy(ctx, d)
}

// open logs in, and finds the subscription.
func (c *command) open(ctx context.Context) (*deployment.Deployment, error) {
	where, err := clouds.Open(c.cloud)
	if err != nil {
		return nil, step.As(step.Configuration, "--cloud", err)
	}
	shared := policy.ClientOptions{Cloud: where.Configuration, Telemetry: policy.TelemetryOptions{ApplicationID: "tpm2cloud"}}
	found, err := azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: shared, DisableInstanceDiscovery: where.Private})
	if err != nil {
		return nil, answer.NotLoggedIn(err)
	}
	credential := answer.Credential{TokenCredential: found}
	resourceManager := &azarm.ClientOptions{ClientOptions: shared}
	if c.subscription == "" {
		if c.subscription, err = arm.TheSubscription(ctx, credential, resourceManager); err != nil {
			return nil, err
		}
	}
	c.complete()
	client, err := arm.New(c.subscription, credential, resourceManager)
	if err != nil {
		return nil, err
	}
	client.Poll = c.poll
	client.Say = func(format string, args ...any) { fmt.Fprintf(c.stderr, format+"\n", args...) }
	return &deployment.Deployment{
		Wanted: c.Wanted, ARM: client, Warn: c.warn,
		Data: func(ctx context.Context, service, host string) (*dps.Client, error) {
			if c.auth == "login" {
				return dps.New(host, dps.WithLogin(credential, where.ProvisioningScope(host)), shared), nil
			}
			key, err := client.ServiceKey(ctx, c.Group, service)
			if err != nil {
				return nil, err
			}
			return dps.New(host, dps.WithKey(key), shared), nil
		},
	}, nil
}

func (c *command) warn(format string, args ...any) {
	fmt.Fprintf(c.stderr, "warning: "+format+"\n", args...)
}

// --- deploy -------------------------------------------------------------------

func (c *command) deploy(ctx context.Context, d *deployment.Deployment) error {
	runner := step.Runner{Steps: d.Steps(), Budget: c.timeout, Notify: c.event}
	if err := runner.Run(ctx); err != nil {
		return err
	}
	if c.json {
		c.writeJSON(struct {
			IDScope string `json:"id_scope"`
			DropIn  string `json:"drop_in"`
		}{d.IDScope(), c.DropIn})
		return nil
	}
	fmt.Fprintf(c.stdout, "id scope: %s\ndrop-in: %s\n", d.IDScope(), c.DropIn)
	return nil
}

// event tells of one step.
func (c *command) event(e step.Event) {
	if !e.Done {
		fmt.Fprintf(c.stderr, "retry: %s: %v; again in %s\n", e.Step, e.Err, e.Wait.Round(100*time.Millisecond))
		return
	}
	for _, w := range e.Observation.Warnings {
		c.warn("%s: %s", e.Step, w)
	}
	if c.json {
		c.writeJSON(struct {
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
	fmt.Fprintf(c.stdout, "%-16s  %-9s  %7.3f s  %s: %s\n", e.Step, verdict, e.Elapsed.Seconds(), e.Observation.Object, e.Observation.Detail)
}

// plan says what deploy would do.
func (c *command) plan(ctx context.Context, d *deployment.Deployment) error {
	rows := step.Observe(ctx, d.Steps())
	for _, row := range rows {
		verdict := map[step.State]string{step.Missing: "create", step.Partial: "change", step.Present: "unchanged", step.Conflict: "conflict"}[row.State]
		if row.State == step.Unknown && row.Err == nil {
			verdict = "create" // it waits for what is to be made
		}
		if c.json {
			c.writeJSON(struct {
				step.Row
				Plan string `json:"plan"`
			}{row, verdict})
		} else if row.Err == nil {
			fmt.Fprintf(c.stdout, "%-16s  %-9s  %s: %s\n", row.Step, verdict, row.Object, row.Detail)
		}
		for _, w := range row.Warnings {
			c.warn("%s: %s", row.Step, w)
		}
	}
	for _, row := range rows {
		if row.Err != nil {
			return &step.Failure{Step: row.Step, Err: row.Err}
		}
		if row.State == step.Conflict {
			return step.As(step.Refused, row.Hint, fmt.Errorf("%s: cannot use %s: %s", row.Step, row.Object, row.Detail))
		}
	}
	return nil
}

// --- status -------------------------------------------------------------------

func (c *command) status(ctx context.Context, d *deployment.Deployment) error {
	rows := step.Observe(ctx, d.Status())
	// What is known is shown, even if it cannot be known which devices there are.
	registrations, err := d.Registrations(ctx)
	if c.json {
		if registrations == nil && err == nil {
			registrations = []dps.Registration{}
		}
		c.writeJSON(struct {
			IDScope       string             `json:"id_scope,omitempty"`
			Steps         []step.Row         `json:"steps"`
			Registrations []dps.Registration `json:"registrations"` // null where it is not known
		}{d.IDScope(), rows, registrations})
	} else {
		c.rows(rows)
		if registrations != nil {
			c.table(registrations)
		}
	}
	if err != nil {
		return err
	}
	return notPresent(rows)
}

func (c *command) rows(rows []step.Row) {
	for _, row := range rows {
		text := row.Detail
		if row.Err != nil {
			text = row.Error
		}
		fmt.Fprintf(c.stdout, "%-16s  %-8s  %s: %s\n", row.Step, row.State, row.Object, text)
		for _, w := range row.Warnings {
			fmt.Fprintf(c.stdout, "%28swarning: %s\n", "", w)
		}
	}
}

func notPresent(rows []step.Row) error {
	for _, row := range rows {
		if row.Err != nil {
			return &step.Failure{Step: row.Step, Err: row.Err}
		}
		if row.State != step.Present {
			class := step.Temporary
			if row.State == step.Conflict {
				class = step.Refused
			}
			return step.As(class, row.Hint, fmt.Errorf("%s is %s", row.Step, row.State))
		}
	}
	return nil
}

// table shows the devices.
func (c *command) table(registrations []dps.Registration) {
	count := map[string]int{}
	for _, r := range registrations {
		count[r.Status]++
	}
	fmt.Fprintf(c.stdout, "\nregistrations: %d", len(registrations))
	for _, status := range []string{"assigned", "assigning", "failed", "disabled", "unassigned"} {
		if count[status] > 0 {
			fmt.Fprintf(c.stdout, ", %d %s", count[status], status)
		}
	}
	fmt.Fprintln(c.stdout)
	for _, r := range registrations {
		detail := r.AssignedHub
		if r.ErrorCode != 0 || r.ErrorMessage != "" {
			detail = strings.TrimSpace(fmt.Sprintf("%d %s", r.ErrorCode, answer.Printable(r.ErrorMessage)))
		}
		fmt.Fprintf(c.stdout, "  %-32s  %-10s  %-20.20s  %s\n", answer.Printable(r.ID), answer.Printable(r.Status), answer.Printable(r.Updated), answer.Printable(detail))
	}
}

// --- destroy ------------------------------------------------------------------

func (c *command) destroy(ctx context.Context, d *deployment.Deployment) error {
	removal, err := d.PlanRemoval(ctx, c.only)
	if err != nil {
		return err
	}
	if removal == nil {
		fmt.Fprintf(c.stdout, "nothing to do: there is no resource group %s\n", c.Group)
		return nil
	}
	for _, r := range removal.Resources {
		fmt.Fprintf(c.stdout, "delete  %s  %s\n", r.Type, r.Name)
	}
	for _, l := range removal.Links {
		fmt.Fprintf(c.stdout, "unlink  %s  from %s\n", l.Hub, l.Service)
	}
	for _, r := range removal.Kept {
		fmt.Fprintf(c.stdout, "keep    %s  %s\n", r.Type, r.Name)
	}
	for _, e := range removal.Enrolments {
		c.left(e)
	}
	if !removal.Whole && len(removal.Resources) == 0 {
		what := "nothing"
		if c.only != (deployment.Only{}) {
			what = "nothing of that name"
		}
		fmt.Fprintf(c.stdout, "nothing to do: %s in the resource group %s has the tag managed-by=tpm2cloud\n", what, c.Group)
		return nil
	}
	verdict := "keep    "
	if removal.Whole {
		verdict = "delete  "
	}
	fmt.Fprintf(c.stdout, "%sresource group  %s\n", verdict, c.Group)
	if c.dryRun {
		return nil
	}
	if !c.yes {
		if err := c.confirm(ctx); err != nil {
			return err
		}
	}
	if err := d.Remove(ctx, removal); err != nil {
		return err
	}
	fmt.Fprintln(c.stdout, "done")
	return nil
}

// left says what stays in a service of somebody else's. It has no tag by which it would be known as ours.
func (c *command) left(e deployment.Enrolment) {
	in := fmt.Sprintf("--resource-group %s --dps-name %s", c.Group, e.Service)
	fmt.Fprintf(c.stdout, "keep    enrolment group %s  in %s: \"az iot dps enrollment-group delete %s --enrollment-id %s\" removes it\n", e.Group, e.Service, in, e.Group)
	for _, name := range e.CAs {
		fmt.Fprintf(c.stdout, "keep    CA certificate %s  in %s: then \"az iot dps certificate delete %s --certificate-name %s --etag ETAG\"\n", name, e.Service, in, name)
	}
}

// confirm has the user type what he is about to lose.
func (c *command) confirm(ctx context.Context) error {
	fmt.Fprintf(c.stderr, "The devices' registrations and all that the hub knows of them go along.\nType the name of the resource group to go on: ")
	typed := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(c.stdin).ReadString('\n') // an error is an answer that is not the name
		typed <- strings.TrimSpace(line)
	}()
	select {
	case line := <-typed:
		if line == c.Group {
			return nil
		}
	case <-ctx.Done():
		fmt.Fprintln(c.stderr)
		return ctx.Err()
	}
	return step.As(step.Usage, "--yes does not ask", errors.New("not confirmed: nothing was deleted"))
}

func (c *command) writeJSON(v any) {
	enc := json.NewEncoder(c.stdout)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // to our own standard output
}
