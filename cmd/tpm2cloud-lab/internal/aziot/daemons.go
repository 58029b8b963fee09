package aziot

// Daemons is the configuration of each daemon, as `config apply` derives it from config.toml. The
// daemons know keys and certificates by ids; only keyd and certd know where these are.
type Daemons struct {
	Keyd      Keyd
	Certd     Certd
	Identityd Identityd
	Edged     map[string]any
	Tpmd      map[string]any
}

// The ids that the daemons use among themselves.
const (
	deviceID     = "device-id"
	estID        = "est-id"
	estBootstrap = "est-bootstrap-id"
	edgeCA       = "aziot-edged-ca"
	trustBundle  = "aziot-edged-trust-bundle"
)

// Keyd is the configuration of aziot-keyd.
type Keyd struct {
	MaxRequests   int64             `toml:"max_requests,omitempty"`
	AziotKeys     map[string]string `toml:"aziot_keys"`
	PreloadedKeys map[string]string `toml:"preloaded_keys"`
	Principal     []KeyPrincipal    `toml:"principal"`
}

// KeyPrincipal is a user that may use keys.
type KeyPrincipal struct {
	UID  int      `toml:"uid"`
	Keys []string `toml:"keys"`
}

// Certd is the configuration of aziot-certd.
type Certd struct {
	HomedirPath    string          `toml:"homedir_path"`
	Issuance       CertdIssuance   `toml:"cert_issuance"`
	PreloadedCerts map[string]any  `toml:"preloaded_certs"` // a URL, or ids of others
	Principal      []CertPrincipal `toml:"principal,omitempty"`
}

// CertPrincipal is a user that may use certificates.
type CertPrincipal struct {
	UID   int      `toml:"uid"`
	Certs []string `toml:"certs"`
}

// CertdIssuance is [cert_issuance]: "est", and a table for each certificate beside it. A map holds
// both because TOML does.
type CertdIssuance map[string]any

// CertdEST is [cert_issuance.est].
type CertdEST struct {
	TrustedCerts      []string          `toml:"trusted_certs"`
	CertdAuth                           // flattened
	IdentityAutoRenew *AutoRenew        `toml:"identity_auto_renew,omitempty"`
	URLs              map[string]string `toml:"urls,omitempty"`
}

// CertdAuth is authentication towards EST, with ids for certificates and keys.
type CertdAuth struct {
	Username      string `toml:"username,omitempty"`
	Password      string `toml:"password,omitempty"`
	IdentityCert  string `toml:"identity_cert,omitempty"`
	IdentityKey   string `toml:"identity_pk,omitempty"`
	BootstrapCert string `toml:"bootstrap_identity_cert,omitempty"`
	BootstrapKey  string `toml:"bootstrap_identity_pk,omitempty"`
}

// CertdCert is how one certificate is issued.
type CertdCert struct {
	Method     string            `toml:"method"`
	URL        string            `toml:"url,omitempty"`
	CertdAuth                    // flattened
	ExpiryDays uint32            `toml:"expiry_days,omitempty"`
	CommonName string            `toml:"common_name,omitempty"`
	Subject    map[string]string `toml:"subject,omitempty"`
}

// Identityd is the configuration of aziot-identityd.
type Identityd struct {
	Hostname     string                `toml:"hostname"`
	Homedir      string                `toml:"homedir"`
	Provisioning IdentitydProvisioning `toml:"provisioning"`
	Principal    []ModulePrincipal     `toml:"principal,omitempty"`
}

// ModulePrincipal is a user that is a module.
type ModulePrincipal struct {
	UID  int    `toml:"uid"`
	Name string `toml:"name"`
}

// IdentitydProvisioning is [provisioning].
type IdentitydProvisioning struct {
	Source         string                `toml:"source"`
	GlobalEndpoint string                `toml:"global_endpoint,omitempty"`
	ScopeID        string                `toml:"scope_id,omitempty"`
	Attestation    *IdentitydAttestation `toml:"attestation,omitempty"`
}

// IdentitydAttestation is [provisioning.attestation].
type IdentitydAttestation struct {
	Method string `toml:"method"`
	// RegistrationID is a string, or a table of the whole subject; none says that the common name
	// of the certificate is used.
	RegistrationID any        `toml:"registration_id,omitempty"`
	IdentityCert   string     `toml:"identity_cert"`
	IdentityKey    string     `toml:"identity_pk"`
	AutoRenew      *AutoRenew `toml:"identity_auto_renew,omitempty"`
}
