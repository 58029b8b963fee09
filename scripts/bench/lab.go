package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

const labProgram = "tpm2cloud-lab"

// lab is a running tpm2cloud-lab; the fields are those of its lab.json.
type lab struct {
	ESTURL   string `json:"est_url"`
	ServerCA string `json:"server_ca"`
	Username string `json:"username"`
	Password string `json:"password"`
	IDScope  string `json:"id_scope"`
	Log      string `json:"log"`

	process *background
}

func startLab(ctx context.Context, program, dir string) (*lab, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot start the lab: %w", err)
	}
	p, err := start(ctx, filepath.Join(dir, "output"), program, "serve", "--dir", dir)
	if err != nil {
		return nil, err
	}
	l := &lab{process: p}
	path := filepath.Join(dir, "lab.json")
	err = p.await(ctx, func() bool { // the lab writes it when it listens
		_, err := os.Stat(path)
		return !errors.Is(err, fs.ErrNotExist)
	})
	if err == nil {
		err = readJSON(path, l)
	}
	if err != nil {
		l.stop()
		return nil, err
	}
	return l, nil
}

func (l *lab) stop() { l.process.stop() }

// server is host:port of the EST server.
func (l *lab) server() (string, error) {
	u, err := url.Parse(l.ESTURL)
	if err != nil {
		return "", fmt.Errorf("cannot read est_url of the lab: %w", err)
	}
	return u.Host, nil
}

// requests counts what the lab has been asked so far: its log has a line for
// each request, and for each connection that ended before one.
func (l *lab) requests() (int, error) {
	data, err := os.ReadFile(l.Log)
	if err != nil {
		return 0, fmt.Errorf("cannot count requests: %w", err)
	}
	return strings.Count(string(data), "\n"), nil
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", path, err)
	}
	return nil
}
