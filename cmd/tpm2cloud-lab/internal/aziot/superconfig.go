package aziot

import (
	"errors"
	"fmt"
	"os"

	"github.com/pelletier/go-toml/v2"
)

// Super is config.toml, the "super config", as far as certificates, keys and DPS go. What it holds
// beyond is for other daemons' features and kept in Rest.
type Super struct {
	Hostname       string
	ParentHostname string
	Source         string // of provisioning: "dps" or "none"
	GlobalEndpoint string
	IDScope        string
	Attestation    Attestation

	AziotKeys      map[string]string
	PreloadedKeys  map[string]KeyLocation
	PreloadedCerts map[string]any
	EST            *EST
	Reprovisioning string // auto_reprovisioning_mode
	Rest           table
}

// Attestation is [provisioning.attestation] of method x509. One of Issued and Preloaded is set.
type Attestation struct {
	RegistrationID string // may be empty: the common name of the certificate is used then
	Issued         *Issuance
	Preloaded      *KeyPair
}

// KeyPair is a certificate and where its key is.
type KeyPair struct {
	Cert string // file: URL
	Key  KeyLocation
}

// Issuance is how a certificate is to be had.
type Issuance struct {
	Method     string // "est", "local_ca", "self_signed"
	URL        string
	Auth       *ESTAuth
	ExpiryDays uint32
	AutoRenew  *AutoRenew
	CommonName string
	Subject    map[string]string
}

// EST is [cert_issuance.est].
type EST struct {
	TrustedCerts      []string
	IdentityAutoRenew AutoRenew
	Auth              *ESTAuth
	URLs              map[string]string
}

// ESTAuth is how certd proves itself to an EST server. At most one of Identity and Bootstrap is set.
type ESTAuth struct {
	Username, Password  string
	HasBasic            bool
	Identity, Bootstrap *KeyPair
}

// ReadSuper reads a config.toml.
func ReadSuper(path string) (*Super, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read config file: %w", err)
	}
	s, err := ParseSuper(data)
	if err != nil {
		return nil, fmt.Errorf("cannot parse config file %s: %w", path, err)
	}
	return s, nil
}

// ParseSuper parses a config.toml.
func ParseSuper(data []byte) (*Super, error) {
	var t table
	if err := toml.Unmarshal(data, &t); err != nil {
		return nil, err
	}
	s := &Super{Rest: t}
	for _, parse := range []func(table) error{s.parseTop, s.parseProvisioning, s.parseKeys, s.parseEST} {
		if err := parse(t); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Super) parseTop(t table) error {
	for _, f := range []struct {
		to  *string
		key string
	}{{&s.Hostname, "hostname"}, {&s.ParentHostname, "parent_hostname"}, {&s.ParentHostname, "local_gateway_hostname"}} {
		v, err := optional[string](t, f.key)
		if err != nil {
			return err
		}
		if v != nil {
			*f.to = *v
		}
	}
	if v, err := optional[int64](t, "cloud_timeout_sec"); err != nil {
		return err
	} else if v != nil && *v < 70 {
		return fmt.Errorf("`cloud_timeout_sec` is %d, less than 70", *v)
	}
	s.Reprovisioning = "Dynamic"
	switch v, err := optional[string](t, "auto_reprovisioning_mode"); {
	case err != nil:
		return err
	case v == nil:
	case *v == "Dynamic", *v == "AlwaysOnStartup", *v == "OnErrorOnly":
		s.Reprovisioning = *v
	default:
		return fmt.Errorf("`auto_reprovisioning_mode`: unknown variant `%s`", *v)
	}
	return nil
}

func (s *Super) parseProvisioning(t table) error {
	p, err := get[map[string]any](t, "provisioning")
	if err != nil {
		return err
	}
	if s.Source, err = get[string](p, "source"); err != nil {
		return fmt.Errorf("provisioning: %w", err)
	}
	switch s.Source {
	case "dps":
	case "none":
		return nil
	case "manual":
		return errors.New("provisioning: source `manual` is none that this stand-in knows (dps, none)")
	default:
		return fmt.Errorf("provisioning: unknown variant `%s` of source", s.Source)
	}
	if s.GlobalEndpoint, err = table(p).link("global_endpoint"); err == nil && s.GlobalEndpoint == "" {
		err = errors.New("missing field `global_endpoint`")
	}
	if err == nil {
		s.IDScope, err = get[string](p, "id_scope")
	}
	var attestation map[string]any
	if err == nil {
		attestation, err = get[map[string]any](p, "attestation")
	}
	if err != nil {
		return fmt.Errorf("provisioning: %w", err)
	}
	if err := s.Attestation.parse(attestation); err != nil {
		return fmt.Errorf("provisioning.attestation: %w", err)
	}
	return nil
}

func (a *Attestation) parse(t table) error {
	method, err := get[string](t, "method")
	if err != nil {
		return err
	}
	if method != "x509" {
		return fmt.Errorf("method `%s` is none that this stand-in knows (x509)", method)
	}
	id, err := optional[string](t, "registration_id")
	if err != nil {
		return err
	}
	if id != nil {
		a.RegistrationID = *id
	}
	// An untagged enum: the first alternative that can be read is taken, the others are not looked
	// at, and all that the real error says is that none matched.
	issuedErr := errors.New("`identity_cert` is no table")
	if cert, _ := t.sub("identity_cert"); cert != nil {
		if a.Issued, issuedErr = parseIssuance(cert); issuedErr == nil {
			return nil
		}
		a.Issued = nil
	}
	if a.Preloaded, err = t.keyPair("identity_"); err == nil {
		return nil
	}
	return fmt.Errorf("data did not match any variant of untagged enum X509Identity: not issued (%w), not preloaded (%w)", issuedErr, err)
}

func parseIssuance(t table) (*Issuance, error) {
	i := &Issuance{}
	var err error
	if i.Method, err = get[string](t, "method"); err != nil {
		return nil, err
	}
	switch i.Method {
	case "est":
		if i.URL, err = t.link("url"); err != nil {
			return nil, err
		}
		i.Auth = parseAuth(t)
	case "local_ca", "self_signed":
	default:
		return nil, fmt.Errorf("unknown variant `%s` of method", i.Method)
	}
	if i.ExpiryDays, err = t.positive("expiry_days"); err != nil {
		return nil, err
	}
	if i.AutoRenew, err = t.autoRenew("auto_renew"); err != nil {
		return nil, err
	}
	// An optional, flattened enum: what cannot be read is taken for not there.
	if cn, _ := optional[string](t, "common_name"); cn != nil {
		i.CommonName = *cn
	} else if subject, err := t.stringMap("subject"); err == nil && len(subject) > 0 {
		i.Subject = subject
	}
	return i, nil
}

// parseAuth reads the two optional, flattened parts of authentication. A part that cannot be read
// is taken for not there: a username without a password is no error, and neither is a key URI
// with a typo.
func parseAuth(t table) *ESTAuth {
	a := &ESTAuth{}
	user, userErr := get[string](t, "username")
	password, passwordErr := get[string](t, "password")
	if userErr == nil && passwordErr == nil {
		a.Username, a.Password, a.HasBasic = user, password, true
	}
	// Bootstrap is tried first, so with both given the other is dropped.
	if p, err := t.keyPair("bootstrap_identity_"); err == nil {
		a.Bootstrap = p
	} else if p, err := t.keyPair("identity_"); err == nil {
		a.Identity = p
	}
	if *a == (ESTAuth{}) {
		return nil
	}
	return a
}

func (s *Super) parseKeys(t table) error {
	var err error
	if s.AziotKeys, err = t.stringMap("aziot_keys"); err != nil {
		return err
	}
	locations, err := t.stringMap("preloaded_keys")
	if err != nil {
		return err
	}
	s.PreloadedKeys = make(map[string]KeyLocation)
	for id, uri := range locations {
		if s.PreloadedKeys[id], err = ParseKeyLocation(uri); err != nil {
			return fmt.Errorf("preloaded_keys: %s: %w", id, err)
		}
	}
	certs, err := t.sub("preloaded_certs")
	s.PreloadedCerts = make(map[string]any)
	for id, v := range certs {
		switch v.(type) {
		case string, []any: // a URL, or ids of others
			s.PreloadedCerts[id] = v
		default:
			return fmt.Errorf("preloaded_certs: `%s` is %s", id, typeName(v))
		}
	}
	return err
}

func (s *Super) parseEST(t table) error {
	issuance, err := t.sub("cert_issuance")
	if err != nil {
		return err
	}
	est, err := issuance.sub("est")
	if est == nil {
		return err
	}
	e := &EST{IdentityAutoRenew: defaultAutoRenew}
	trusted, err := optional[[]any](est, "trusted_certs")
	if err != nil {
		return fmt.Errorf("cert_issuance.est: %w", err)
	}
	if trusted != nil {
		for i := range *trusted {
			link, err := table{"trusted_certs": (*trusted)[i]}.link("trusted_certs")
			if err != nil {
				return fmt.Errorf("cert_issuance.est: %w", err)
			}
			e.TrustedCerts = append(e.TrustedCerts, link)
		}
	}
	renew, err := est.autoRenew("identity_auto_renew")
	if err != nil {
		return fmt.Errorf("cert_issuance.est: %w", err)
	}
	if renew != nil {
		e.IdentityAutoRenew = *renew
	}
	auth, err := est.sub("auth")
	if err != nil {
		return fmt.Errorf("cert_issuance.est: %w", err)
	}
	e.Auth = parseAuth(auth)
	if e.URLs, err = est.stringMap("urls"); err != nil {
		return fmt.Errorf("cert_issuance.est: %w", err)
	}
	for name := range e.URLs {
		if e.URLs[name], err = (table{name: e.URLs[name]}).link(name); err != nil {
			return fmt.Errorf("cert_issuance.est.urls: %w", err)
		}
	}
	s.EST = e
	return nil
}
