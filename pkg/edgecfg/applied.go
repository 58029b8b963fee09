package edgecfg

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// "config apply" writes one file for each daemon and nothing else of
// config.toml remains: whether a configuration was applied is read from these.
func (p *Program) daemonFile(daemon string) string {
	return p.cfg.Path("/etc/aziot/" + daemon + "/config.d/00-super.toml")
}

// expectation is one value that a daemon's file must hold; without a value the
// key must not be there. Only what this program says is compared: the rest is
// the defaults of whatever version of the Identity Service is installed.
type expectation struct {
	daemon, key, value string
}

// expected is what "config apply" makes of s. The daemons know certificates and
// keys by ids; the files and URIs behind the ids are certd's and keyd's alone.
func (s *superConfig) expected() []expectation {
	list := []expectation{
		{"identityd", "provisioning.source", "dps"},
		{"identityd", "provisioning.global_endpoint", s.globalEndpoint},
		{"identityd", "provisioning.scope_id", s.idScope},
		{"identityd", "provisioning.attestation.method", "x509"},
		{"identityd", "provisioning.attestation.registration_id", s.attestation.registrationID},
		{"keyd", "aziot_keys.pkcs11_lib_path", s.keys.libPath},
		{"keyd", "aziot_keys.pkcs11_base_slot", s.keys.baseSlot},
	}
	if s.hostname != "" {
		list = append(list, expectation{"identityd", "hostname", s.hostname})
	}
	var device, est keyPair
	if s.attestation.preloaded != nil {
		device = *s.attestation.preloaded
	}
	if s.est != nil {
		if s.est.identity != nil {
			est = *s.est.identity
		}
		ca := ""
		if len(s.est.trustedCerts) > 0 {
			ca = s.est.trustedCerts[0]
		}
		list = append(list,
			expectation{"certd", "cert_issuance.device-id.common_name", s.attestation.issued.commonName},
			expectation{"certd", "cert_issuance.est.urls.default", s.est.url},
			expectation{"certd", "cert_issuance.est.username", s.est.username},
			expectation{"certd", "cert_issuance.est.password", s.est.password},
			expectation{"certd", "preloaded_certs.est-server-ca-1", ca})
	}
	return append(list,
		expectation{"certd", "preloaded_certs.device-id", device.cert},
		expectation{"certd", "preloaded_certs.est-id", est.cert},
		expectation{"keyd", "preloaded_keys.device-id", device.key},
		expectation{"keyd", "preloaded_keys.est-id", est.key})
}

// unapplied says why the daemons do not run what w wants, or "". It names keys
// and never values, of which some are secrets.
func (p *Program) unapplied(w *wanted) (string, error) {
	trees := map[string]map[string]any{}
	for _, e := range w.super.expected() {
		tree, read := trees[e.daemon]
		if !read {
			var err error
			tree, err = readTOML(p.daemonFile(e.daemon))
			if errors.Is(err, fs.ErrNotExist) {
				return e.daemon + " has no configuration", nil
			}
			if err != nil {
				return "", err
			}
			trees[e.daemon] = tree
		}
		if have := lookup(tree, e.key); !sameValue(have, e.value) {
			return fmt.Sprintf("%s of %s is another", e.key, e.daemon), nil
		}
	}
	return p.outdated(w.files)
}

// outdated says which of some files is newer than what the daemons run, or "":
// they read certificates, and systemd reads the drop-in, when they start.
func (p *Program) outdated(files []file) (string, error) {
	daemons := []string{"identityd", "certd", "keyd"}
	if p.hasEdge() {
		daemons = append(daemons, "edged") // of the agent; aziotctl alone does not write it
	}
	var oldest time.Time
	for _, daemon := range daemons {
		info, err := os.Stat(p.daemonFile(daemon))
		if errors.Is(err, fs.ErrNotExist) {
			return daemon + " has no configuration", nil
		}
		if err != nil {
			return "", fmt.Errorf("cannot look at the configuration of %s: %w", daemon, err)
		}
		if oldest.IsZero() || info.ModTime().Before(oldest) {
			oldest = info.ModTime()
		}
	}
	for _, f := range files {
		info, err := os.Stat(p.cfg.Path(f.path))
		if err != nil {
			return "", fmt.Errorf("cannot look at the files of the configuration: %w", err)
		}
		if info.ModTime().After(oldest) {
			return f.path + " is newer than what the daemons run", nil
		}
	}
	return "", nil
}

// readTOML reads a file of the Identity Service.
func readTOML(path string) (map[string]any, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the applied configuration: %w", err)
	}
	var tree map[string]any
	if toml.Unmarshal(data, &tree) != nil {
		// The parser's error quotes the line, which may hold a PIN. A file that
		// nobody can parse was not applied: the next apply replaces it.
		return nil, nil
	}
	return tree, nil
}

// lookup is the string at a dotted key, or "".
func lookup(tree map[string]any, key string) string {
	name, rest, deeper := strings.Cut(key, ".")
	switch v := tree[name].(type) {
	case string:
		if !deeper {
			return v
		}
	case map[string]any:
		if deeper {
			return lookup(v, rest)
		}
		// A registration id may be written as the whole subject.
		cn, _ := v["CN"].(string)
		return cn
	}
	return ""
}

// sameValue compares two values as the Identity Service reads them: it writes
// URLs in their normal form, and escapes more in a PKCS#11 URI than we do.
func sameValue(a, b string) bool { return a == b || normal(a) == normal(b) }

func normal(s string) string {
	switch {
	case strings.HasPrefix(s, "pkcs11:"):
		if plain, err := url.PathUnescape(s); err == nil {
			return plain
		}
	case strings.HasPrefix(s, "https://"), strings.HasPrefix(s, "file://"):
		if u, err := url.Parse(s); err == nil {
			u.Host = strings.TrimSuffix(strings.ToLower(u.Host), ":443")
			u.Path = strings.TrimSuffix(u.Path, "/")
			return u.String()
		}
	}
	return s
}

// previous is what identityd was told by the last apply, and what came of it.
type previous struct {
	applied     map[string]any // nil: there was none
	provisioned bool           // identityd keeps a device of a hub
	deviceID    string
	since       time.Time
}

func (p *Program) deviceInfo() string { return p.cfg.Path("/var/lib/aziot/identityd/device_info") }

func (p *Program) readPrevious() (*previous, error) {
	var prev previous
	var err error
	if prev.applied, err = readTOML(p.daemonFile("identityd")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	info, err := os.Stat(p.deviceInfo())
	if errors.Is(err, fs.ErrNotExist) {
		return &prev, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read what identityd knows of the device: %w", err)
	}
	data, err := os.ReadFile(p.deviceInfo())
	if err != nil {
		return nil, fmt.Errorf("cannot read what identityd knows of the device: %w", err)
	}
	var device struct {
		DeviceID string `toml:"device_id"`
	}
	if toml.Unmarshal(data, &device) != nil {
		// The one word "unprovisioned", or what identityd cannot read either:
		// it registers by itself when it starts.
		return &prev, nil
	}
	prev.provisioned, prev.deviceID, prev.since = true, device.DeviceID, info.ModTime()
	return &prev, nil
}

// Registered says under which name identityd has the device at a hub, "": it has
// none, and whether that is the name that it should have.
func (p *Program) Registered() (name string, right bool, err error) {
	prev, err := p.readPrevious()
	if err != nil || !prev.provisioned {
		return "", false, classify(err)
	}
	id, err := p.readLDevID()
	if err != nil {
		return prev.deviceID, false, err
	}
	want, err := p.deviceID(id)
	return prev.deviceID, err == nil && prev.deviceID == want, err
}

// Installed says whether there is an agent to configure.
func (p *Program) Installed() bool { return p.tool() != "" }

// reprovision says why identityd must register anew, or "". It keeps the hub
// and device that DPS gave it, and does not ask again at a start, not even with
// another id scope: a changed configuration, and an image that was cloned from
// a device, would go on as the old device.
func (p *Program) reprovision(w *wanted) (string, error) {
	prev, err := p.readPrevious()
	if err != nil || !prev.provisioned {
		return "", err
	}
	if prev.applied == nil {
		return "the device was registered with another configuration", nil
	}
	for _, e := range w.super.expected() {
		switch e.key {
		case "provisioning.source", "provisioning.global_endpoint", "provisioning.scope_id", "provisioning.attestation.registration_id":
			if !sameValue(lookup(prev.applied, e.key), e.value) {
				return e.key + " has changed", nil
			}
		}
	}
	if prev.deviceID != w.in.deviceID {
		return "the device was registered under another name", nil
	}
	if w.super.attestation.preloaded != nil {
		// The hub knows the device by the certificate that it registered with.
		switch info, err := os.Stat(w.in.ldevid); {
		case err != nil:
			return "", fmt.Errorf("cannot look at the LDevID certificate: %w", err)
		case info.ModTime().After(prev.since):
			return "the certificate has changed", nil
		}
	}
	return "", nil
}
