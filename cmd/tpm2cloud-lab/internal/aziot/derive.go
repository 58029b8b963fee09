package aziot

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
)

// Derive turns a config.toml into the configuration of each daemon, with or without the edge
// daemon. The daemons' users have their own uids on a real device; here all of them are who runs
// this, as in a debug build of the real one.
func Derive(s *Super, edge bool) (*Daemons, error) {
	if s.Source == "dps" && s.ParentHostname != "" {
		return nil, errors.New("cannot apply: DPS provisioning is not supported in nested mode")
	}
	hostname := s.Hostname
	if hostname == "" {
		var err error
		if hostname, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("cannot apply: no hostname: %w", err)
		}
	}
	d := &deriver{
		super:         s,
		keys:          maps.Clone(s.PreloadedKeys),
		certs:         maps.Clone(s.PreloadedCerts),
		issuance:      make(CertdIssuance),
		identitydKeys: []string{"aziot_identityd_master_id"},
	}
	identityd := Identityd{
		Hostname:     hostname,
		Homedir:      "/var/lib/aziot/identityd",
		Provisioning: d.provisioning(),
	}
	d.est()
	uid := os.Getuid()
	var edgeKeys, edgeCerts []string
	if edge {
		edgeKeys, edgeCerts = d.edgeCA()
		identityd.Principal = []ModulePrincipal{{UID: uid, Name: "aziot-edge"}}
	}
	var keyPrincipals []KeyPrincipal
	for _, keys := range [][]string{d.identitydKeys, d.certdKeys, edgeKeys} {
		if len(keys) > 0 {
			keyPrincipals = append(keyPrincipals, KeyPrincipal{UID: uid, Keys: keys})
		}
	}
	var certPrincipals []CertPrincipal
	for _, certs := range [][]string{d.identitydCerts, edgeCerts} {
		if len(certs) > 0 {
			certPrincipals = append(certPrincipals, CertPrincipal{UID: uid, Certs: certs})
		}
	}
	aziotKeys := maps.Clone(s.AziotKeys)
	aziotKeys["homedir_path"] = "/var/lib/aziot/keyd"
	preloaded := make(map[string]string)
	for id, location := range d.keys {
		preloaded[id] = location.String()
	}
	result := &Daemons{
		Keyd: Keyd{
			AziotKeys:     aziotKeys,
			PreloadedKeys: preloaded,
			Principal:     keyPrincipals,
		},
		Certd: Certd{
			HomedirPath:    "/var/lib/aziot/certd",
			Issuance:       d.issuance,
			PreloadedCerts: d.certs,
			Principal:      certPrincipals,
		},
		Identityd: identityd,
		Edged:     edged(s, hostname),
		Tpmd:      make(map[string]any),
	}
	if n, _ := optional[int64](s.Rest, "aziot_max_requests"); n != nil {
		result.Keyd.MaxRequests = *n
	}
	return result, nil
}

// deriver collects what the parts of config.toml contribute to keyd's and certd's configuration.
type deriver struct {
	super    *Super
	keys     map[string]KeyLocation
	certs    map[string]any
	issuance CertdIssuance

	identitydKeys, identitydCerts, certdKeys []string
}

func (d *deriver) provisioning() IdentitydProvisioning {
	s := d.super
	p := IdentitydProvisioning{Source: s.Source}
	if s.Source != "dps" {
		return p
	}
	p.GlobalEndpoint, p.ScopeID = s.GlobalEndpoint, s.IDScope
	a := &IdentitydAttestation{Method: "x509", IdentityCert: deviceID, IdentityKey: deviceID}
	p.Attestation = a
	d.identitydKeys = append(d.identitydKeys, deviceID)

	if pair := s.Attestation.Preloaded; pair != nil {
		d.keys[deviceID], d.certs[deviceID] = pair.Key, pair.Cert
		if id := s.Attestation.RegistrationID; id != "" {
			a.RegistrationID = id
		}
		return p
	}
	i := s.Attestation.Issued
	options := CertdCert{
		Method: i.Method, URL: i.URL, ExpiryDays: i.ExpiryDays, CommonName: i.CommonName, Subject: i.Subject,
		CertdAuth: d.auth(i.Auth, "-"+deviceID, true),
	}
	if i.AutoRenew != nil { // needs a second certificate, and maybe key, while it renews
		a.AutoRenew = i.AutoRenew
		temp := deviceID + "-temp"
		d.issuance[temp] = options
		d.identitydCerts = append(d.identitydCerts, temp)
		if i.AutoRenew.RotateKey {
			d.identitydKeys = append(d.identitydKeys, temp)
		}
	}
	d.issuance[deviceID] = options
	d.identitydCerts = append(d.identitydCerts, deviceID)
	if subject := requestSubject(s.Attestation.RegistrationID, i); subject != nil {
		a.RegistrationID = subject
	}
	return p
}

// requestSubject is the subject that identityd asks for: with the registration id as its common
// name, whatever common_name says, and none at all unless both are there.
func requestSubject(id string, i *Issuance) any {
	switch {
	case id == "" || i.CommonName == "" && i.Subject == nil:
		return nil
	case i.Subject == nil:
		return id
	}
	subject := make(map[string]string)
	for name, value := range i.Subject {
		subject[strings.ToUpper(name)] = value
	}
	subject["CN"] = id
	return subject
}

// auth gives the certificates and keys of an authentication their ids.
func (d *deriver) auth(a *ESTAuth, suffix string, rotate bool) CertdAuth {
	var c CertdAuth
	if a == nil {
		return c
	}
	if a.HasBasic {
		c.Username, c.Password = a.Username, a.Password
	}
	id := estID + suffix
	switch {
	case a.Bootstrap != nil:
		boot := estBootstrap + suffix
		d.certs[boot], d.keys[boot] = a.Bootstrap.Cert, a.Bootstrap.Key
		c.BootstrapCert, c.BootstrapKey = boot, boot
		d.certdKeys = append(d.certdKeys, boot, id)
		if rotate {
			d.certdKeys = append(d.certdKeys, id+"-temp")
		}
	case a.Identity != nil:
		d.certs[id], d.keys[id] = a.Identity.Cert, a.Identity.Key
		d.certdKeys = append(d.certdKeys, id)
	default:
		return c
	}
	c.IdentityCert, c.IdentityKey = id, id
	return c
}

func (d *deriver) est() {
	e := d.super.EST
	if e == nil {
		return
	}
	est := CertdEST{TrustedCerts: []string{}, URLs: e.URLs, CertdAuth: d.auth(e.Auth, "", e.IdentityAutoRenew.RotateKey)}
	if e.IdentityAutoRenew != defaultAutoRenew {
		est.IdentityAutoRenew = &e.IdentityAutoRenew
	}
	for i, link := range e.TrustedCerts {
		id := fmt.Sprintf("est-server-ca-%d", i+1)
		d.certs[id] = link
		est.TrustedCerts = append(est.TrustedCerts, id)
	}
	d.issuance["est"] = est
}

// edgeCA is the quickstart CA of the edge, which certd signs itself: the one kind that the
// programs of this project set up. Keys and certificates are for the principal of aziot-edged.
func (d *deriver) edgeCA() (keys, certs []string) {
	temp := edgeCA + "-temp"
	quickstart := CertdCert{Method: "self_signed", ExpiryDays: 90}
	d.issuance[edgeCA], d.issuance[temp] = quickstart, quickstart
	d.certdKeys = append(d.certdKeys, edgeCA, temp)
	d.certs[trustBundle] = []string{edgeCA}
	return []string{edgeCA, "iotedge_master_encryption_id", temp}, []string{edgeCA, "aziot-edged/module/*", temp}
}

// edged is the configuration of aziot-edged: what config.toml says of it, else its defaults.
func edged(s *Super, hostname string) map[string]any {
	e := map[string]any{
		"hostname":                          hostname,
		"homedir":                           "/var/lib/aziot/edged",
		"trust_bundle_cert":                 trustBundle,
		"auto_reprovisioning_mode":          s.Reprovisioning,
		"allow_elevated_docker_permissions": true,
		"edge_ca":                           map[string]any{"auto_renew": defaultAutoRenew},
		"agent": map[string]any{
			"name": "edgeAgent", "type": "docker", "imagePullPolicy": "on-create",
			"config": map[string]any{"image": "mcr.microsoft.com/azureiotedge-agent:1.5", "createOptions": map[string]any{}},
			"env":    map[string]any{},
		},
		"connect": map[string]any{
			"workload_uri":   "unix:///var/run/iotedge/workload.sock",
			"management_uri": "unix:///var/run/iotedge/mgmt.sock",
		},
		"listen": map[string]any{
			"workload_uri":    "fd://aziot-edged.workload.socket",
			"management_uri":  "fd://aziot-edged.mgmt.socket",
			"min_tls_version": "tls1.0",
		},
		"watchdog":     map[string]any{"max_retries": "infinite"},
		"moby_runtime": map[string]any{"uri": "unix:///var/run/docker.sock", "network": "azure-iot-edge"},
	}
	for key := range e {
		if v, given := s.Rest[key]; given {
			e[key] = v
		}
	}
	return e
}
