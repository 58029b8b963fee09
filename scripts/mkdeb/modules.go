package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/goreleaser/nfpm/v2/files"
)

const ours = "github.com/tpm2cloud/tpm2cloud"

// module is a Go module that is linked into a program of a package.
type module struct {
	Path, Version, Sum string
	Dir                string // its source
}

// modules are what the programs of a package are made of.
type modules struct {
	golang string // version of Go
	list   []module
}

// modulesOf reads them from the programs, not from go.mod, which lists what
// tests need as well.
func modulesOf(contents files.Contents) (modules, error) {
	var all modules
	for _, c := range contents {
		if !strings.HasPrefix(c.Destination, "/usr/bin/") {
			continue
		}
		info, err := buildinfo.ReadFile(c.Source)
		if err != nil {
			return all, fmt.Errorf("cannot read what %s is made of: %w", c.Source, err)
		}
		all.golang = strings.TrimPrefix(info.GoVersion, "go")
		// This repository's first module, as far as one of the others uses it, is
		// the package's own source.
		info.Deps = slices.DeleteFunc(info.Deps, func(m *debug.Module) bool {
			return m.Path == ours && m.Replace != nil && m.Replace.Path == "../.."
		})
		dirs, err := moduleDirs(info)
		if err != nil {
			return all, err
		}
		for _, m := range info.Deps {
			if m.Replace != nil {
				return all, fmt.Errorf("%s has %s in the place of %s: a package is made of released modules", c.Source, m.Replace.Path, m.Path)
			}
			dir := dirs[m.Path+"@"+m.Version]
			if dir == "" {
				return all, fmt.Errorf("cannot find the source of %s %s", m.Path, m.Version)
			}
			all.list = append(all.list, module{m.Path, m.Version, m.Sum, dir})
		}
	}
	slices.SortFunc(all.list, func(a, b module) int {
		return strings.Compare(a.Path+"@"+a.Version, b.Path+"@"+b.Version)
	})
	all.list = slices.Compact(all.list)
	return all, nil
}

// moduleDirs tells where the sources of a program's modules are.
func moduleDirs(info *buildinfo.BuildInfo) (map[string]string, error) {
	folder := "." + strings.TrimPrefix(info.Main.Path, ours)
	args := []string{"list", "-m", "-json"}
	for _, m := range info.Deps {
		args = append(args, m.Path)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = folder
	out, err := outputOf(cmd)
	if err != nil {
		return nil, err
	}
	dirs := map[string]string{}
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var m module
		err := decoder.Decode(&m)
		if errors.Is(err, io.EOF) {
			return dirs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the output of go list: %w", err)
		}
		dirs[m.Path+"@"+m.Version] = m.Dir
	}
}
