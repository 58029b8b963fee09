package main

import (
	"context"
	"fmt"

	"github.com/tpm2cloud/tpm2cloud/pkg/check"
	"github.com/tpm2cloud/tpm2cloud/pkg/cli"
)

// check makes all checks. What it fails with is the first that failed.
func (o *options) check(ctx context.Context, call *cli.Call) error {
	cfg, broken := call.Config()
	var subject *check.Subject
	if broken == nil {
		subject = check.Open(cfg)
		defer subject.Close()
	}
	count := map[check.Verdict]int{}
	results := check.Run(ctx, subject, broken, func(r check.Result) {
		count[r.Verdict]++
		if !call.JSON {
			writeResult(call, r)
		}
	})
	if call.JSON {
		call.WriteJSON(struct {
			Checks []check.Result `json:"checks"`
		}{results})
	} else {
		fmt.Fprintf(call.Out, "\n%d checks: %d ok, %d warnings, %d failed, %d skipped\n",
			len(results), count[check.OK], count[check.Warning], count[check.Failed], count[check.Skipped])
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return check.Failure(results)
}

func writeResult(call *cli.Call, r check.Result) {
	text := r.Detail
	if text == "" {
		text = r.Title
	}
	fmt.Fprintf(call.Out, "%-18s  %-8s %s\n", r.ID, r.Verdict, text)
	if r.Hint != "" {
		fmt.Fprintf(call.Out, "%30s%s\n", "hint: ", r.Hint)
	}
}
