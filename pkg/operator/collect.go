package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/check"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/report"
	"github.com/tpm2cloud/tpm2cloud/pkg/status"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
	"github.com/tpm2cloud/tpm2cloud/pkg/systemd"
)

// journalLines bounds the journal in a report.
const journalLines = 5000

// collector fills a bundle. Where the configuration is broken, and that is when
// reports are asked for, the places are those of the defaults.
type collector struct {
	*report.Bundle
	cfg    *config.Config
	dir    string // of the configuration
	broken error  // why it is the default
}

// scrubber knows every secret that is on this device. One that cannot be read
// could not be recognised, so then there is no report.
func (c *collector) scrubber() (*report.Scrubber, error) {
	var secrets, names []string
	credentials := filepath.Join(c.dir, "credentials")
	for _, pattern := range []string{credentials + "/*", filepath.Join(c.cfg.Run.State, identity.Pins, "*-pin")} {
		files, err := c.readAll(pattern)
		if err != nil {
			return nil, step.As(step.Permission, "run as root", fmt.Errorf("cannot make sure that no secret gets into the report: %w", err))
		}
		for name, data := range files {
			secrets = append(secrets, string(data))
			names = append(names, filepath.Base(name))
		}
	}
	for _, s := range c.cfg.Secrets() {
		// What cannot be read is not known to anybody; the file itself is not collected.
		if value, err := c.cfg.ReadSecret(s); err == nil {
			secrets, names = append(secrets, value), append(names, string(s))
		}
	}
	scrub := report.NewScrubber(secrets, names)
	for _, pattern := range []string{"/etc/aziot/config.toml", "/etc/aziot/*/config.d/*.toml"} {
		files, err := c.readAll(pattern)
		if err != nil {
			return nil, step.As(step.Permission, "run as root", fmt.Errorf("cannot make sure that no secret gets into the report: %w", err))
		}
		for _, data := range files {
			scrub.Learn(report.Values(data)...)
		}
	}
	return scrub, nil
}

// readAll reads the files of a pattern, below the root. A directory that may not
// be read is an error, although it matches nothing.
func (c *collector) readAll(pattern string) (map[string][]byte, error) {
	dir := filepath.Dir(c.cfg.Path(pattern))
	if _, err := os.ReadDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !strings.ContainsAny(dir, "*") {
		return nil, err
	}
	paths, err := filepath.Glob(c.cfg.Path(pattern))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			continue
		}
		if files[path], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// collect looks at everything, and reads what is not secret.
func (c *collector) collect(ctx context.Context) {
	c.add("configuration-error.txt", c.whyBroken)
	c.look(ctx)
	for _, name := range check.Programs {
		c.file(filepath.Join(status.Dir, string(name)+".json"))
	}
	c.file(filepath.Join(c.cfg.Run.State, "reset.json"))
	c.configurations(filepath.Join(c.dir, "*.toml"), filepath.Join(c.dir, "tpm2cloud.toml.d/*.toml"), "/etc/aziot/config.toml")
	for _, dir := range []string{identity.IDevID, identity.LDevID} {
		for _, name := range []string{identity.FileCertificate, identity.FileCA, identity.FileEK, identity.FileEKChain, identity.FileSRK} {
			c.file(filepath.Join(c.cfg.Run.State, dir, name))
		}
	}
	c.file("/etc/systemd/system/aziot-keyd.service.d/50-tpm2cloud.conf")
	c.file("/etc/os-release")
	c.file("/proc/version")
	c.add("files.txt", func() ([]byte, error) { return c.list() })
	c.add("packages.txt", func() ([]byte, error) { return c.packages() })
	if build, ok := debug.ReadBuildInfo(); ok {
		c.Add("build.txt", []byte(build.String()), nil)
	}
	if c.cfg.Root() != "/" && c.cfg.Root() != "" || !systemd.Running() {
		c.Add("journal.txt", nil, errors.New("systemd does not run this root"))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c.add("journal.txt", func() ([]byte, error) { return systemd.JournalOf(ctx, journalLines, "tpm2cloud*", "aziot*") })
	c.add("units.txt", func() ([]byte, error) { return systemd.StatusOf(ctx, "tpm2cloud*", "aziot*") })
}

func (c *collector) add(name string, get func() ([]byte, error)) {
	if data, err := get(); data != nil || err != nil {
		c.Add(name, data, err)
	}
}

func (c *collector) whyBroken() ([]byte, error) {
	if c.broken == nil {
		return nil, nil
	}
	return []byte(c.broken.Error()), nil
}

// look adds status, checks and what is in the TPM.
func (c *collector) look(ctx context.Context) {
	var subject *check.Subject
	if c.broken == nil {
		subject = check.Open(c.cfg)
		defer subject.Close()
		records := store.Open(c.cfg.Path(status.Dir), 0o755)
		defer records.Close()
		c.add("status.json", func() ([]byte, error) { return json.MarshalIndent(Look(ctx, subject, records), "", "  ") })
		c.add("tpm.txt", func() ([]byte, error) { return contents(subject) })
	}
	results := check.Run(ctx, subject, c.broken, func(check.Result) {})
	c.add("check.json", func() ([]byte, error) { return json.MarshalIndent(results, "", "  ") })
}

// contents lists what is in the TPM.
func contents(s *check.Subject) ([]byte, error) {
	who, err := s.DescribeTPM()
	if err != nil {
		return nil, err
	}
	keys, err := s.TPM.Persistent()
	if err != nil {
		return nil, err
	}
	indices, err := s.TPM.Indices()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintln(&b, who)
	for _, handle := range keys {
		key, err := s.TPM.ReadPublic(handle)
		if err != nil {
			fmt.Fprintf(&b, "key %#x: %v\n", uint32(handle), err)
			continue
		}
		fmt.Fprintf(&b, "key %#x: type %#x, attributes %+v, name %x\n", uint32(handle), uint16(key.Public.Type), key.Public.ObjectAttributes, key.Name)
	}
	for _, handle := range indices {
		index, err := s.TPM.Index(handle)
		if err != nil {
			fmt.Fprintf(&b, "index %#x: %v\n", uint32(handle), err)
			continue
		}
		fmt.Fprintf(&b, "index %#x: %d bytes, attributes %+v\n", uint32(handle), index.DataSize, index.Attributes)
	}
	return b.Bytes(), nil
}

// file adds a file that holds no secret, if it is there.
func (c *collector) file(path string) {
	data, err := os.ReadFile(c.cfg.Path(path))
	if !errors.Is(err, fs.ErrNotExist) {
		c.Add("files"+path, data, err)
	}
}

func (c *collector) configurations(patterns ...string) {
	for _, pattern := range patterns {
		paths, err := filepath.Glob(c.cfg.Path(pattern))
		if err != nil {
			c.Add("files"+pattern, nil, err)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			c.AddConfiguration("files/"+c.below(path), data, err)
		}
	}
}

// below is a path as the device has it, without the root and the first slash.
func (c *collector) below(path string) string {
	name, err := filepath.Rel(c.cfg.Path("/"), path)
	if err != nil {
		return filepath.Base(path)
	}
	return name
}

// list lists files with their modes and owners, and reads none.
func (c *collector) list() ([]byte, error) {
	var b bytes.Buffer
	for _, dir := range []string{c.dir, c.cfg.Run.State, c.cfg.LDevID.Token.Store, "/etc/aziot", "/run/tpm2cloud", "/var/lib/aziot/certd/certs", "/var/lib/aziot/identityd"} {
		err := filepath.WalkDir(c.cfg.Path(dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				fmt.Fprintf(&b, "%v\n", err)
				return nil
			}
			info, err := d.Info()
			if err != nil {
				fmt.Fprintf(&b, "%v\n", err)
				return nil
			}
			owner := info.Sys().(*syscall.Stat_t)
			fmt.Fprintf(&b, "%s %d:%d %8d %s /%s\n", info.Mode(), owner.Uid, owner.Gid, info.Size(), info.ModTime().UTC().Format(time.RFC3339), c.below(path))
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// packages lists the versions of what matters here, as dpkg has them.
func (c *collector) packages() ([]byte, error) {
	data, err := os.ReadFile(c.cfg.Path("/var/lib/dpkg/status"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	relevant := regexp.MustCompile(`^(tpm2cloud|libtpm2-pkcs11|libtss2|tpm-udev|aziot|systemd$|libsqlite3-0$|ca-certificates$|linux-image)`)
	var b bytes.Buffer
	for paragraph := range strings.SplitSeq(string(data), "\n\n") {
		fields := map[string]string{}
		for line := range strings.Lines(paragraph) {
			if name, value, ok := strings.Cut(line, ": "); ok {
				fields[name] = strings.TrimSpace(value)
			}
		}
		if relevant.MatchString(fields["Package"]) {
			fmt.Fprintf(&b, "%s %s (%s)\n", fields["Package"], fields["Version"], fields["Status"])
		}
	}
	return b.Bytes(), nil
}

// Collect fills a bundle: dir is the directory of the configuration below its
// root, and broken says why cfg is only the default one.
func Collect(ctx context.Context, cfg *config.Config, dir string, broken error) (*report.Bundle, error) {
	c := &collector{cfg: cfg, dir: dir, broken: broken}
	scrub, err := c.scrubber()
	if err != nil {
		return nil, err
	}
	c.Bundle = report.New(scrub)
	c.collect(ctx)
	return c.Bundle, nil
}
