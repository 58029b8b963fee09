package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/cli"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/operator"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// report writes the bundle.
func (o *options) report(ctx context.Context, call *cli.Call) (err error) {
	now := time.Now().UTC()
	// Reports are asked for when the configuration is broken, too.
	cfg, broken := call.Config()
	if broken != nil {
		cfg = config.DefaultBelow(call.Root)
	}
	bundle, err := operator.Collect(ctx, cfg, call.ConfigDir(), broken)
	if err != nil {
		return err
	}

	host, _ := os.Hostname() // a name for a file
	folder := fmt.Sprintf("tpm2cloud-report-%s-%s", filepath.Base("/"+host), now.Format("20060102T150405Z"))
	head := fmt.Sprintf("Report of tpm2cloud on %s, %s", host, now.Format(time.RFC3339))
	if o.output == "-" {
		return bundle.Write(call.Out, folder, head, now)
	}
	name := o.output
	if name == "" {
		name = folder + ".tar.gz"
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return step.As(step.Usage, "--output names another file", fmt.Errorf("cannot write the report: %w", err))
	}
	if err := errors.Join(bundle.Write(f, folder, head, now), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("cannot write the report: %w", err), os.Remove(name))
	}
	if call.JSON {
		call.WriteJSON(struct {
			File string `json:"file"`
		}{name})
	} else {
		fmt.Fprintln(call.Out, name)
	}
	return nil
}
