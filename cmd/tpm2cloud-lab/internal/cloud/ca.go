package cloud

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// The labels of the EST server, each with an authority of its own.
const (
	labelIDevID      = "idevid"
	labelLDevID      = "ldevid"
	labelOperational = "operational"
)

var labels = []string{labelIDevID, labelLDevID, labelOperational}

// endOfTime is the notAfter for "no well-defined expiration" (RFC 5280, 4.1.2.5), which 802.1AR
// wants in an IDevID.
var endOfTime = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// authority is a root and the issuing CA below it. Each label has its own root: with a common one,
// a client that trusts the root would take the certificate of one label for that of another.
type authority struct {
	label         string
	root, issuing *x509.Certificate
	key           crypto.Signer // of issuing
}

// authorities is all that `ca create` makes.
type authorities struct {
	byLabel  map[string]*authority
	serverCA *x509.Certificate
	caKey    crypto.Signer // of serverCA
	server   tls.Certificate
}

// Create makes the authorities and the TLS server certificate in dir, and refuses if any are there.
func Create(dir string) error {
	for _, name := range append([]string{"server"}, labels...) {
		if path := caPath(dir, name); exists(path) {
			return fmt.Errorf("cannot create the CAs: %s already exists", path)
		}
	}
	_, err := openAuthorities(dir)
	return err
}

// openAuthorities reads the authorities of dir and makes those that are missing.
func openAuthorities(dir string) (*authorities, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot create the CAs: %w", err)
	}
	a := &authorities{byLabel: make(map[string]*authority)}
	for _, label := range labels {
		if !exists(caPath(dir, label)) {
			if err := createAuthority(dir, label); err != nil {
				return nil, err
			}
		}
		certs, key, err := readCA(dir, label)
		if err != nil {
			return nil, err
		}
		a.byLabel[label] = &authority{label: label, issuing: certs[0], root: certs[len(certs)-1], key: key}
	}
	if !exists(caPath(dir, "server")) {
		key, cert, err := newCA("tpm2cloud-lab server CA", nil, nil)
		if err != nil {
			return nil, err
		}
		if err := writeCA(dir, "server", key, cert); err != nil {
			return nil, err
		}
	}
	certs, key, err := readCA(dir, "server")
	if err != nil {
		return nil, err
	}
	a.serverCA, a.caKey = certs[0], key
	a.server, err = openServer(dir, a.serverCA, a.caKey)
	return a, err
}

func caPath(dir, name string) string  { return filepath.Join(dir, name+"-ca.pem") }
func keyPath(dir, name string) string { return filepath.Join(dir, name+"-ca.key") }

// writeCA writes the key first: a certificate file says that the key is there too, so a run that
// was cut in between is simply repeated.
func writeCA(dir, name string, key *ecdsa.PrivateKey, chain ...*x509.Certificate) error {
	if err := writeKey(keyPath(dir, name), key); err != nil {
		return err
	}
	return writeFile(caPath(dir, name), encodeCertificates(chain...), 0o644)
}

func readCA(dir, name string) ([]*x509.Certificate, crypto.Signer, error) {
	certs, err := readCertificates(caPath(dir, name))
	if err != nil {
		return nil, nil, err
	}
	key, err := readKey(keyPath(dir, name))
	if err != nil {
		return nil, nil, err
	}
	if !certs[0].PublicKey.(*ecdsa.PublicKey).Equal(key.Public()) {
		return nil, nil, fmt.Errorf("cannot use %s: it is not the key of %s", keyPath(dir, name), caPath(dir, name))
	}
	return certs, key, nil
}

// createAuthority makes a root and its issuing CA. The root's key is not kept: nothing will ever
// be signed with it again.
func createAuthority(dir, label string) error {
	rootKey, root, err := newCA("tpm2cloud-lab "+label+" root", nil, nil)
	if err != nil {
		return err
	}
	key, issuing, err := newCA("tpm2cloud-lab "+label+" CA", root, rootKey)
	if err != nil {
		return err
	}
	return writeCA(dir, label, key, issuing, root)
}

// newCA makes a CA that parent signs, or a self-signed one without a parent.
func newCA(name string, parent *x509.Certificate, parentKey crypto.Signer) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot create %s: %w", name, err)
	}
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour).Truncate(time.Second),
		NotAfter:              endOfTime, // an issuing CA must outlive its IDevIDs
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	if parent == nil {
		parent, parentKey = template, key
	} else {
		template.MaxPathLenZero = true
	}
	cert, err := sign(template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot create %s: %w", name, err)
	}
	return key, cert, nil
}

// openServer reads the certificate of the TLS listeners, or makes it.
func openServer(dir string, ca *x509.Certificate, caKey crypto.Signer) (tls.Certificate, error) {
	certPath, keyPath := filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")
	if !exists(certPath) {
		now := time.Now()
		key, cert, err := newServerCertificate(ca, caKey, now.Add(-time.Hour), endOfTime,
			[]string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback})
		if err != nil {
			return tls.Certificate{}, err
		}
		if err := writeKey(keyPath, key); err != nil {
			return tls.Certificate{}, err
		}
		if err := writeFile(certPath, encodeCertificates(cert), 0o644); err != nil {
			return tls.Certificate{}, err
		}
	}
	pair, err := tls.LoadX509KeyPair(certPath, keyPath)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("cannot read the server certificate: %w", err)
	}
	return pair, nil
}

func newServerCertificate(ca *x509.Certificate, caKey crypto.Signer, notBefore, notAfter time.Time,
	names []string, ips []net.IP,
) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot create the server certificate: %w", err)
	}
	cert, err := sign(&x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{CommonName: "tpm2cloud-lab server"},
		NotBefore:    notBefore.Truncate(time.Second),
		NotAfter:     notAfter.Truncate(time.Second),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     names,
		IPAddresses:  ips,
	}, ca, key.Public(), caKey)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot create the server certificate: %w", err)
	}
	return key, cert, nil
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial is a positive serial number of 127 random bits.
func newSerial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}
