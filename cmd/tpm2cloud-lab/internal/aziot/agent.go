package aziot

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Agent is what [RunAgent] can be told.
type Agent struct {
	Config   string // config.toml
	State    string // directory for what the daemons keep in /var/lib/aziot
	SystemCA string // PEM file, added to the system's store
	Poll     time.Duration
	Dropins  []string
}

// RunAgent does what the Azure IoT Identity Service does at its first start: it gets the device's
// certificate, registers with DPS, and speaks to the hub.
func RunAgent(ctx context.Context, a Agent, stdout io.Writer) error {
	if err := Environment(a.Dropins); err != nil {
		return err
	}
	super, err := ReadSuper(a.Config)
	if err != nil {
		return err
	}
	daemons, err := Derive(super, true)
	if err != nil {
		return err
	}
	p := daemons.Identityd.Provisioning
	if p.Source != "dps" {
		return fmt.Errorf("cannot provision: source is %q, not dps", p.Source)
	}
	trust, err := systemTrust(a.SystemCA)
	if err != nil {
		return err
	}
	state := a.State
	if state == "" {
		state = filepath.Join(filepath.Dir(a.Config), "state")
	}
	keys, err := openKeys(&daemons.Keyd, filepath.Join(state, "keyd"))
	if err != nil {
		return err
	}
	d := &device{
		attestation: p.Attestation,
		preloaded:   super.Attestation.Preloaded != nil,
		keys:        keys,
		certs:       &certStore{home: filepath.Join(state, "certd"), certd: &daemons.Certd, keys: keys, trust: trust},
	}
	pair, err := d.identity(ctx)
	if err != nil {
		return err
	}
	id, err := d.registrationID(pair.Leaf)
	if err != nil {
		return err
	}
	c := newCloud(pair, trust, a.Poll)
	defer c.client.CloseIdleConnections()
	hub, name, err := c.register(ctx, p.GlobalEndpoint, p.ScopeID, id)
	if err != nil {
		return err
	}
	modules, err := c.modules(ctx, hub, name)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "hub: %s\ndevice: %s\nmodules: %s\n", hub, name, strings.Join(modules, " "))
	return nil
}

func systemTrust(extra string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("cannot read the system's CA certificates: %w", err)
	}
	if extra == "" {
		return pool, nil
	}
	data, err := os.ReadFile(extra)
	if err != nil {
		return nil, fmt.Errorf("cannot read the system's CA certificates: %w", err)
	}
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("cannot read the system's CA certificates: none in %s", extra)
	}
	return pool, nil
}

// device is identityd's view of its own identity.
type device struct {
	attestation *IdentitydAttestation
	preloaded   bool
	keys        *keyStore
	certs       *certStore
}

// identity returns the certificate and key to show to the cloud, and requests them if there are
// none.
func (d *device) identity(ctx context.Context) (*tls.Certificate, error) {
	chain, err := d.certs.load(deviceID)
	if d.preloaded {
		if err != nil && d.attestation.RegistrationID != nil {
			return nil, fmt.Errorf("%w; with a registration_id the real service would now delete the key of %s and make another", err, deviceID)
		}
		if err != nil {
			return nil, err
		}
		return d.certs.pair(deviceID, deviceID)
	}
	if err == nil {
		expired := time.Now().After(chain[0].NotAfter)
		if expired && d.attestation.AutoRenew == nil {
			return nil, fmt.Errorf("cannot use certificate %s: it ended at %s and auto_renew is not configured", deviceID, chain[0].NotAfter)
		}
		if pair, err := d.certs.pair(deviceID, deviceID); err == nil && !expired {
			return pair, nil
		}
	}
	request, err := d.request()
	if err != nil {
		return nil, err
	}
	var key crypto.Signer
	if key, err = d.keys.create(deviceID, algorithmRSA); err != nil {
		return nil, err
	}
	if err := d.certs.issue(ctx, deviceID, key, request); err != nil {
		return nil, err
	}
	return d.certs.pair(deviceID, deviceID)
}

// request is the certificate request of identityd: the subject, and no extensions at all.
func (d *device) request() (*x509.CertificateRequest, error) {
	switch subject := d.attestation.RegistrationID.(type) {
	case string:
		return &x509.CertificateRequest{Subject: pkix.Name{CommonName: truncate(subject)}}, nil
	case map[string]string:
		name := pkix.Name{CommonName: truncate(subject["CN"])}
		for field, value := range subject {
			oid, known := subjectFields[field]
			if !known && field != "CN" {
				return nil, fmt.Errorf("cannot create new cert: unknown subject field %s", field)
			}
			if known {
				name.ExtraNames = append(name.ExtraNames, pkix.AttributeTypeAndValue{Type: oid, Value: value})
			}
		}
		return &x509.CertificateRequest{Subject: name}, nil
	}
	return nil, errors.New("cannot create new cert: registration ID is unknown (EST needs registration_id and common_name)")
}

// truncate cuts a common name at the 64 bytes that X.509 allows, as the real one does: silently.
func truncate(s string) string { return s[:min(64, len(s))] }

var subjectFields = map[string]asn1.ObjectIdentifier{
	"C": {2, 5, 4, 6}, "ST": {2, 5, 4, 8}, "L": {2, 5, 4, 7},
	"O": {2, 5, 4, 10}, "OU": {2, 5, 4, 11}, "SERIALNUMBER": {2, 5, 4, 5},
}

// registrationID is the configured one, else the common name of the certificate.
func (d *device) registrationID(leaf *x509.Certificate) (string, error) {
	switch id := d.attestation.RegistrationID.(type) {
	case string:
		return id, nil
	case map[string]string:
		return id["CN"], nil
	}
	if leaf.Subject.CommonName == "" {
		return "", errors.New("cannot register with DPS: the certificate has no common name")
	}
	return leaf.Subject.CommonName, nil
}
