package edgecfg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// wipeStep removes the secrets that the identities were enrolled with, where
// the configuration says so. It is here and not in the programs that used them,
// because the files are root's; and at the end, when both certificates have been
// verified in their places and the agent works with them. The identities need
// the secrets no more: a power cut at any point leaves a device as good as ever.
type wipeStep struct{ p *Program }

func (s *wipeStep) Name() string { return "secrets" }

// wiped are the files that are to be gone.
func (p *Program) wiped() []string {
	var files []string
	for _, e := range []config.Enroll{p.cfg.IDevID.Enroll, p.cfg.LDevID.Enroll} {
		if _, named := e.SecretKey(); e.WipeSecret && named != "" {
			files = append(files, p.cfg.SecretFile(named))
		}
	}
	slices.Sort(files)
	return slices.Compact(files)
}

func (s *wipeStep) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{Object: "secrets of the enrolment", State: step.Present, Detail: "not to be wiped"}
	files := s.p.wiped()
	if len(files) == 0 {
		return obs, nil
	}
	obs.Detail = "wiped"
	var left []string
	for _, file := range files {
		switch _, err := os.Lstat(file); {
		case err == nil:
			left = append(left, file)
		case !errors.Is(err, fs.ErrNotExist):
			return obs, classify(fmt.Errorf("cannot look for a secret: %w", err))
		}
	}
	if len(left) == 0 {
		return obs, nil
	}
	obs.State, obs.Detail = step.Partial, "still there: "+strings.Join(left, ", ")
	for _, file := range left {
		if why := readOnly(file); why != nil {
			obs.Waiting = fmt.Sprintf("cannot wipe %s here (%v): run tpm2cloud-edgecfg by hand, as root, or allow it to its unit (ReadWritePaths=)", file, why)
		}
	}
	return obs, nil
}

// readOnly says why this process may not change a file or its directory, as in
// a unit that sees all but some directories read-only.
func readOnly(file string) error {
	for _, path := range []string{file, filepath.Dir(file)} {
		if err := unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS); errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
			return err
		}
	}
	return nil
}

func (s *wipeStep) Act(context.Context, step.Observation) error {
	for _, file := range s.p.wiped() {
		dir := store.Open(filepath.Dir(file), 0o700)
		err := errors.Join(dir.Wipe(filepath.Base(file)), dir.Close())
		if err != nil {
			return step.As(step.Refused, "remove it yourself", err)
		}
	}
	return nil
}
