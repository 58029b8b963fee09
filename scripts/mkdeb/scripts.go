package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/files"
)

// autoscripts are debhelper's, read where its package puts them: what Debian
// has learned about users, temporary files and units is not written anew here.
const autoscripts = "/usr/share/debhelper/autoscripts"

// daemonReload is not among debhelper's without a start or a restart of units,
// and no script of ours does either: a device gets its identities at a boot or
// when somebody starts the target, never because apt ran.
const daemonReload = `if [ "$1" = "configure" ] && [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
	systemctl --system daemon-reload >/dev/null || true
fi
`

// A snippet is text for a maintainer script, made for a file of the package.
type snippet struct {
	script string // postinst and the like
	text   string
}

// addScripts gives a package its maintainer scripts: debian/PACKAGE.SCRIPT, or
// nothing but what debhelper adds.
func addScripts(info *nfpm.Info, debian, dir string) error {
	snippets, err := snippetsFor(info.Contents, autoscripts)
	if err != nil {
		return err
	}
	for script, field := range map[string]*string{
		"preinst": &info.Scripts.PreInstall, "postinst": &info.Scripts.PostInstall,
		"prerm": &info.Scripts.PreRemove, "postrm": &info.Scripts.PostRemove,
	} {
		var text strings.Builder
		for _, s := range snippets {
			if s.script == script {
				text.WriteString("# Automatically added by mkdeb\n" + s.text + "# End automatically added section\n")
			}
		}
		template, err := os.ReadFile(filepath.Join(debian, info.Name+"."+script))
		switch {
		case errors.Is(err, fs.ErrNotExist) && text.Len() == 0:
			continue
		case errors.Is(err, fs.ErrNotExist):
			template = []byte("#!/bin/sh\nset -e\n#DEBHELPER#\n")
		case err != nil:
			return err
		}
		whole, err := insert(string(template), text.String())
		if err != nil {
			return fmt.Errorf("cannot make the %s: %w", script, err)
		}
		*field = filepath.Join(dir, script)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(*field, []byte(whole), 0o755); err != nil {
			return err
		}
	}
	return nil
}

var placeholder = regexp.MustCompile(`(?m)^#DEBHELPER#\n`)

func insert(template, text string) (string, error) {
	if len(placeholder.FindAllString(template, -1)) != 1 {
		return "", errors.New("it must have one line #DEBHELPER#")
	}
	return placeholder.ReplaceAllLiteralString(template, text), nil
}

// snippetsFor finds out, as debhelper does, what the files of a package need.
func snippetsFor(contents files.Contents, autoscripts string) ([]snippet, error) {
	var result []snippet
	var reload bool
	add := func(name string, values ...string) error {
		data, err := os.ReadFile(filepath.Join(autoscripts, name))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot read %s: scripts/deps installs debhelper", filepath.Join(autoscripts, name))
		}
		if err != nil {
			return err
		}
		text := strings.NewReplacer(values...).Replace(string(data))
		// A newer debhelper may ask for more than it is given here.
		if left := regexp.MustCompile(`#[A-Z_]+#`).FindString(text); left != "" {
			return fmt.Errorf("cannot fill in %s: %s is not known here", name, left)
		}
		script, _, _ := strings.Cut(name, "-")
		result = append(result, snippet{script, text})
		return nil
	}
	users, temporary, units := []string{}, []string{}, []string{}
	for _, c := range contents {
		dir, name := path.Split(c.Destination)
		switch {
		case dir == "/usr/lib/sysusers.d/":
			users = append(users, name)
		case dir == "/usr/lib/tmpfiles.d/":
			temporary = append(temporary, name)
		case dir == "/usr/lib/systemd/system/" && c.Type != files.TypeDir:
			reload = true
			installable, err := hasInstallSection(c.Source)
			if err != nil {
				return nil, err
			}
			if installable {
				units = append(units, name)
			}
		}
	}
	// In this order, because each may need what is before it.
	var errs []error
	for _, name := range users {
		errs = append(errs, add("postinst-sysusers", "#CONFILE_BASENAME#", name))
	}
	for _, name := range temporary {
		errs = append(errs, add("postinst-init-tmpfiles", "#TMPFILES#", name))
	}
	for _, name := range units {
		errs = append(errs,
			add("postinst-systemd-enable", "#UNITFILE#", "'"+name+"'"),
			add("postrm-systemd", "#UNITFILES#", "'"+name+"'"))
	}
	if reload {
		errs = append(errs, add("postrm-systemd-reload-only"))
		result = append(result, snippet{"postinst", daemonReload})
	}
	return result, errors.Join(errs...)
}

func hasInstallSection(unit string) (bool, error) {
	data, err := os.ReadFile(unit)
	return regexp.MustCompile(`(?m)^\[Install\]$`).Match(data), err
}
