package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/files"
)

// makeManual makes the manual pages, and bash completion, below a folder: man/NAME.SECTION.gz
// and completions/PROGRAM. It needs the keys that the programs read, which are
// another module's.
func makeManual(dir string, r release) error {
	cmd := exec.Command("go", "run", "-tags", tags, "./scripts/manual", "make", dir)
	// The pages have a date. It runs here, whatever is compiled for.
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+r.epoch(), "GOOS=", "GOARCH=", "GOFLAGS=")
	if _, err := outputOf(cmd); err != nil {
		return fmt.Errorf("cannot make the manual pages: %w", err)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "man", "*"))
	if err != nil {
		return err
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		if err := compress(page+".gz", text); err != nil {
			return err
		}
	}
	return nil
}

// addDocumentation adds what every package has, and what debian/ has for it.
func (b *builder) addDocumentation(info *nfpm.Info, m modules, dir string) error {
	doc := "/usr/share/doc/" + info.Name
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	copyright, err := b.copyright(info, m)
	if err != nil {
		return err
	}
	name := filepath.Join(dir, "copyright")
	if err := os.WriteFile(name, []byte(copyright), 0o644); err != nil {
		return err
	}
	add(info, name, doc+"/copyright")

	changelog, err := os.ReadFile("debian/changelog")
	if err != nil {
		return err
	}
	name = filepath.Join(dir, "changelog.gz")
	if err := compress(name, changelog); err != nil {
		return err
	}
	add(info, name, doc+"/changelog.gz")

	for suffix, destination := range map[string]string{
		"lintian-overrides": "/usr/share/lintian/overrides/" + info.Name,
		"README.Debian":     doc + "/README.Debian",
	} {
		name := filepath.Join("debian", info.Name+"."+suffix)
		switch _, err := os.Stat(name); {
		case err == nil:
			add(info, name, destination)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return nil
}

func add(info *nfpm.Info, source, destination string) {
	info.Contents = append(info.Contents, &files.Content{
		Source: source, Destination: destination, FileInfo: &files.ContentFileInfo{Mode: 0o644},
	})
}

// copyright is debian/copyright, and the licences of what is linked or taken
// from others.
func (b *builder) copyright(info *nfpm.Info, m modules) (string, error) {
	own, err := os.ReadFile("debian/copyright")
	if err != nil {
		return "", err
	}
	text := strings.TrimRight(string(own), "\n") + "\n"
	for _, module := range m.list {
		l, err := licenceIn(module.Dir)
		if err != nil {
			return "", err
		}
		text += "\n" + l.stanza(module.Path+"@"+module.Version+"/*", module.Path)
	}
	if m.golang != "" {
		root, err := output("go", "env", "GOROOT")
		if err != nil {
			return "", err
		}
		l, err := licenceIn(strings.TrimSpace(string(root)))
		if err != nil {
			return "", err
		}
		text += "\n" + l.stanza("go@"+m.golang+"/*", "Go")
	}
	for _, c := range info.Contents {
		if strings.HasPrefix(c.Destination, rootsDir) {
			return text + "\n" + b.roots.stanza(), nil
		}
	}
	return text, nil
}

// compress is gzip -9n.
func compress(name string, data []byte) error {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, b.Bytes(), 0o644)
}
