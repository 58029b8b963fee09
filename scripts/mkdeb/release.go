package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// release is what debian/changelog says of its newest entry. There is no other
// place for it.
type release struct {
	Version, Maintainer string
	Time                time.Time
}

func readRelease() (release, error) {
	var r release
	var timestamp string
	for field, value := range map[string]*string{"Version": &r.Version, "Maintainer": &r.Maintainer, "Timestamp": &timestamp} {
		out, err := output("dpkg-parsechangelog", "-l", "debian/changelog", "-S", field)
		if err != nil {
			return r, fmt.Errorf("cannot read debian/changelog: %w", err)
		}
		*value = strings.TrimSpace(string(out))
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return r, fmt.Errorf("cannot read debian/changelog: its time: %w", err)
	}
	r.Time = time.Unix(seconds, 0).UTC()
	return r, nil
}

// epoch is the time as other programs want it told.
func (r release) epoch() string { return strconv.FormatInt(r.Time.Unix(), 10) }

// output runs a program. An error has what it wrote to standard error.
func output(name string, args ...string) ([]byte, error) {
	return outputOf(exec.Command(name, args...))
}

func outputOf(cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s is not there: scripts/deps package installs it", cmd.Args[0])
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}
