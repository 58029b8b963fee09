package edgecfg

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
)

// superConfig is what this program says in /etc/aziot/config.toml, which the
// Identity Service calls its super config: "iotedge config apply" makes the
// configurations of all its daemons of it. The field names follow its keys.
//
// A method fills it in ([dps], [estBasic], [estMTLS]); everything else is made
// of it: the text (render.go), the files that it names (files.go), and what the
// daemons' own files must hold once it was applied (applied.go).
type superConfig struct {
	hostname string // "": the system's, at the time of the apply

	globalEndpoint string
	idScope        string

	attestation attestation
	est         *certIssuance // nil: certd requests nothing over EST
	keys        aziotKeys
}

// attestation is how the device proves to DPS who it is: with a certificate
// and key that are there (preloaded), or with one that certd requests (issued).
type attestation struct {
	registrationID string // "": identityd takes the certificate's common name
	preloaded      *keyPair
	issued         *issuedCert
}

// keyPair is a certificate file and the URI of its key.
type keyPair struct {
	cert string // file URL
	key  string // PKCS#11 URI
}

// issuedCert is the operational certificate.
type issuedCert struct {
	commonName string
	autoRenew  autoRenew
}

// autoRenew: the Identity Service wants all three keys or no table.
type autoRenew struct {
	rotateKey        bool
	threshold, retry string
}

// certIssuance is how certd talks to the EST server.
type certIssuance struct {
	trustedCerts       []string // file URLs; empty: the system's store alone
	username, password string
	identity           *keyPair
	identityAutoRenew  *autoRenew
	url                string
}

// aziotKeys is passed on to keyd. Any other key in this table kills keyd.
type aziotKeys struct {
	libPath  string
	baseSlot string // "": keyd makes its own keys in files
}

// A method is one way in which the Identity Service comes to the certificate
// that it shows to DPS.
type method func(*inputs) superConfig

// methods are the edge methods; a new one is one file and one line.
var methods = map[config.EdgeMethod]method{
	config.EdgeDPS:   dps,
	config.EdgeBasic: estBasic,
	config.EdgeMTLS:  estMTLS,
}

// inputs is what the methods choose from.
type inputs struct {
	edge     config.Edge
	deviceID string
	token    tokenURI
	module   string
	ldevid   string // path of our copy of the LDevID certificate
	estCA    string // path of our copy of the EST server's CA; "": the system's store
	password string // of [edge.est]
}

// base is what all methods have in common.
func (in *inputs) base() superConfig {
	return superConfig{
		hostname:       in.edge.Hostname,
		globalEndpoint: in.edge.GlobalEndpoint,
		idScope:        in.edge.IDScope,
		keys:           aziotKeys{libPath: in.module},
	}
}

// overEST is what the two EST methods have in common: an operational
// certificate for the device id, requested and renewed by the Identity Service.
func (in *inputs) overEST() superConfig {
	s := in.base()
	s.attestation = attestation{
		// Without it identityd has no subject to ask for; and it must be the
		// name in the certificate, so both come from one value.
		registrationID: in.deviceID,
		// Without the table the certificate is never renewed.
		issued: &issuedCert{commonName: in.deviceID, autoRenew: autoRenew{rotateKey: true, threshold: "80%", retry: "4%"}},
	}
	s.est = &certIssuance{url: estURL(in.edge.EST), username: in.edge.EST.Username, password: in.password}
	if in.estCA != "" {
		s.est.trustedCerts = []string{fileURL(in.estCA)}
	}
	if in.edge.OperationalKey == config.OperationalTPM {
		// With a base slot keyd makes every key pair in the token, and opens
		// its session when it starts: a token that cannot be opened kills it.
		s.keys.baseSlot = in.token.slot()
	}
	return s
}

// estURL is the address to which certd adds /cacerts and /simpleenroll.
func estURL(e config.EdgeEST) string {
	u := url.URL{Scheme: "https", Host: e.Server, Path: "/.well-known/est"}
	if e.Label != "" {
		u.Path += "/" + e.Label
	}
	return u.String()
}

// fileURL is the URL of an absolute path.
func fileURL(path string) string { return (&url.URL{Scheme: "file", Path: path}).String() }

// tokenURI is a PKCS#11 URI (RFC 7512) as far as keyd reads one. Of the path
// it knows token, slot-id and object, of the query pin-value, and drops all
// else without a word, pin-source too: so the PIN is in clear in config.toml
// and in keyd's file, both of mode 0600. Slot numbers of tpm2-pkcs11 change
// when a store is rebuilt, so the token goes by its label.
type tokenURI struct{ token, object, pin string }

// key is the URI of the token's key pair of that label.
func (u tokenURI) key() string {
	return "pkcs11:token=" + percentEncode(u.token) + ";object=" + percentEncode(u.object) + "?pin-value=" + percentEncode(u.pin)
}

// slot is the URI of the token alone. It has the PIN as well: keyd opens one
// session a slot, and the PIN of the URI that came first is the one that counts.
func (u tokenURI) slot() string {
	return "pkcs11:token=" + percentEncode(u.token) + "?pin-value=" + percentEncode(u.pin)
}

// percentEncode escapes all but RFC 3986's unreserved characters.
func percentEncode(s string) string {
	const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(unreserved, s[i]) >= 0 {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
	}
	return b.String()
}
