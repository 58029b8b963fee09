// Package config reads /etc/tpm2cloud: tpm2cloud.toml, then the drop-ins
// tpm2cloud.toml.d/*.toml in the order of their names, each of which overrides
// single keys of what came before.
//
// Reading is strict and has no side effects. An unknown key, a value of the
// wrong type or a value that can never work is an [Error], which names the
// file, the line, the key and what is allowed. [Load] reads, fills in the
// defaults and validates, [Config.Check] asks for what one program cannot do
// without; nothing else of the project judges a setting.
//
// The files hold no secrets, and everybody may read them. They name secrets
// (see [Secret]), and [Config.ReadSecret] reads one when it is needed.
//
// Every absolute path in a configuration is meant below the root that the
// programs get by --root. [Config.Path] joins the two, and is the only place
// that does.
package config

import (
	"path/filepath"
	"strings"
	"time"
)

// Config is the whole configuration. The zero value of a key that Load leaves
// empty means what the comment says.
type Config struct {
	Run    Run    `toml:"run"`
	TPM    TPM    `toml:"tpm"`
	Device Device `toml:"device"`
	EK     EK     `toml:"ek"`
	IDevID IDevID `toml:"idevid"`
	LDevID LDevID `toml:"ldevid"`
	Edge   Edge   `toml:"edge"`

	root string
	at   positions
}

// Run holds what every program needs.
type Run struct {
	Budget Duration `toml:"budget"` // time for one run, waiting included
	State  string   `toml:"state"`  // the directory of our files
	// OnForeignState says what happens to files that were made with another TPM.
	OnForeignState OnForeignState `toml:"on_foreign_state"`
}

// TPM is how the TPM is reached and used. The four authorisation values are
// names of secrets (see [Secret]); empty means that the hierarchy has none.
type TPM struct {
	Device          string   `toml:"device"`   // /dev/tpmrm0, or unix:/path of a software TPM's socket
	Platform        Platform `toml:"platform"` // what happens to the platform hierarchy at the end
	OwnerAuth       Secret   `toml:"owner_auth"`
	EndorsementAuth Secret   `toml:"endorsement_auth"`
	LockoutAuth     Secret   `toml:"lockout_auth"`
	PlatformAuth    Secret   `toml:"platform_auth"`
}

// Device overrides what the board says of itself.
type Device struct {
	Model  string `toml:"model"`
	Serial string `toml:"serial"`
	MAC    string `toml:"mac"`
}

// EK is how the endorsement key's certificate is judged.
type EK struct {
	Verify       Verify   `toml:"verify"`
	Trust        []string `toml:"trust"`         // directories of the vendors' CA certificates
	AllowExpired bool     `toml:"allow_expired"` // a certificate past its end is a warning, not an error
}

// IDevID is the manufacturer's identity.
type IDevID struct {
	Key          KeyAlgorithm `toml:"key"`
	CommonName   string       `toml:"common_name"`
	SerialNumber string       `toml:"serial_number"`
	Organization string       `toml:"organization"`
	Storage      Storage      `toml:"storage"` // hierarchy of the NV index
	Enroll       Enroll       `toml:"enroll"`
}

// LDevID is the owner's identity.
type LDevID struct {
	Key              KeyAlgorithm `toml:"key"`
	CommonName       string       `toml:"common_name"`
	SerialNumber     string       `toml:"serial_number"`
	Organization     string       `toml:"organization"`
	OnOrphan         OnOrphan     `toml:"on_orphan"`
	IDevIDCA         string       `toml:"idevid_ca"`          // empty: the CA certificates kept at enrolment
	IDevIDCommonName string       `toml:"idevid_common_name"` // empty: the one of [idevid]
	Enroll           Enroll       `toml:"enroll"`
	Token            Token        `toml:"token"`
}

// Token is the tpm2-pkcs11 token that holds the LDevID.
type Token struct {
	Label  string `toml:"label"`
	Key    string `toml:"key"` // CKA_LABEL of the LDevID
	Store  string `toml:"store"`
	Module string `toml:"module"` // empty: the system's libtpm2_pkcs11
}

// Enroll is how a certificate is got.
type Enroll struct {
	Method        Method `toml:"method"`
	Server        string `toml:"server"`    // host:port of the EST server
	Label         string `toml:"label"`     // RFC 7030 section 3.2.2
	ServerCA      string `toml:"server_ca"` // "system", or a PEM file
	Proxy         string `toml:"proxy"`     // empty: HTTPS_PROXY and NO_PROXY decide
	Username      string `toml:"username"`
	Password      Secret `toml:"password"`
	Secret        Secret `toml:"secret"`         // of est-secret
	CACertificate string `toml:"ca_certificate"` // of method ca
	CAKey         string `toml:"ca_key"`         // of method ca
	Days          int    `toml:"days"`           // of method ca; 0: without end for the IDevID, else ten years
	AnySubject    bool   `toml:"any_subject"`    // the CA may rewrite the subject
	WipeSecret    bool   `toml:"wipe_secret"`    // remove the secret once it has served
}

// SecretKey is the key whose secret the method needs, and what that names; both
// are empty where the method needs none.
func (e Enroll) SecretKey() (key string, named Secret) {
	switch e.Method {
	case MethodBasic:
		return "password", e.Password
	case MethodSecret:
		return "secret", e.Secret
	case MethodCA:
		return "ca_key", Secret(e.CAKey)
	}
	return "", ""
}

// Edge is Azure IoT Edge's configuration.
type Edge struct {
	Method         EdgeMethod     `toml:"method"`
	IDScope        string         `toml:"id_scope"`
	GlobalEndpoint string         `toml:"global_endpoint"`
	DeviceID       string         `toml:"device_id"` // empty: the LDevID's common name
	Hostname       string         `toml:"hostname"`  // empty: the system's, at the time of the apply
	Apply          Apply          `toml:"apply"`
	OperationalKey OperationalKey `toml:"operational_key"`
	EST            EdgeEST        `toml:"est"`
}

// EdgeEST is where the Identity Service gets the operational certificate.
type EdgeEST struct {
	Server   string `toml:"server"`
	Label    string `toml:"label"`
	ServerCA string `toml:"server_ca"`
	Username string `toml:"username"`
	Password Secret `toml:"password"`
}

// Path puts an absolute path of the configuration below the root.
func (c *Config) Path(p string) string { return filepath.Join(c.root, p) }

// Root is the directory below which every absolute path lies.
func (c *Config) Root() string { return c.root }

// TPMDevice is [TPM].Device below the root.
func (c *Config) TPMDevice() string {
	if path, ok := strings.CutPrefix(c.TPM.Device, "unix:"); ok {
		return "unix:" + c.Path(path)
	}
	return c.Path(c.TPM.Device)
}

// Software says whether the TPM is a program: only those have a socket.
func (t TPM) Software() bool { return strings.HasPrefix(t.Device, "unix:") }

// TCTI is how tpm2-tss, and so the PKCS#11 library, reaches the same TPM.
func (c *Config) TCTI() string {
	if path, ok := strings.CutPrefix(c.TPM.Device, "unix:"); ok {
		return "swtpm:path=" + c.Path(path)
	}
	return "device:" + c.Path(c.TPM.Device)
}

// DefaultBelow is the configuration without any file, below a root: where that
// of a device is broken, its files are most likely there.
func DefaultBelow(root string) *Config {
	c := Default()
	c.root = root
	return c
}

// Default is the configuration without any file.
func Default() *Config {
	return &Config{
		Run: Run{Budget: Duration(10 * time.Minute), State: "/var/lib/tpm2cloud", OnForeignState: ForeignRefuse},
		TPM: TPM{Device: "/dev/tpmrm0", Platform: PlatformClose},
		EK: EK{
			Verify:       VerifyRequire,
			Trust:        []string{"/usr/share/tpm2cloud/ek-roots", "/etc/tpm2cloud/ek-roots"},
			AllowExpired: true,
		},
		IDevID: IDevID{
			Key: ECCP256, CommonName: "{hash}", SerialNumber: "{serial}", Storage: StoragePlatform,
			Enroll: Enroll{Method: MethodBasic, ServerCA: SystemCA},
		},
		LDevID: LDevID{
			Key: ECCP256, CommonName: "{serial}", OnOrphan: OrphanReplace,
			Enroll: Enroll{Method: MethodMTLS, ServerCA: SystemCA},
			Token:  Token{Label: "edge", Key: "ldevid", Store: "/var/lib/tpm2cloud/pkcs11"},
		},
		Edge: Edge{
			Method:         EdgeMTLS,
			GlobalEndpoint: "https://global.azure-devices-provisioning.net",
			Apply:          ApplyAuto,
			OperationalKey: OperationalTPM,
			EST:            EdgeEST{ServerCA: SystemCA},
		},
	}
}
