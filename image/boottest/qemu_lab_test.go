//go:build boot

package boottest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// qemuHost is how a machine with QEMU's user network sees the loopback interface of this one.
const qemuHost = "10.0.2.2"

// newQEMULab makes a laboratory that such machines reach: its certificate has that address, too.
func newQEMULab(t *testing.T) *Lab {
	t.Helper()
	dir := scratch("lab")
	command(t, nil, filepath.Join(top, "build/bin/tpm2cloud-lab"), "ca", "create", dir)
	certifyQEMUHost(t, dir)
	lab := labIn(t, dir)
	lab.Server = lab.address(t, "est_url", qemuHost)
	lab.DPS = "https://" + lab.address(t, "dps_url", qemuHost)
	return lab
}

// address is where something of lab.json is for who calls its host by that name.
func (lab *Lab) address(t *testing.T, what, host string) string {
	t.Helper()
	u, err := url.Parse(lab.About[what])
	must(t, err)
	return net.JoinHostPort(host, u.Port())
}

// certifyQEMUHost makes the certificate of the laboratory's servers, in the place of the one that it
// would make itself.
func certifyQEMUHost(t *testing.T, dir string) {
	t.Helper()
	ca, err := x509.ParseCertificate(readPEM(t, filepath.Join(dir, "server-ca.pem")))
	must(t, err)
	caKey, err := x509.ParseECPrivateKey(readPEM(t, filepath.Join(dir, "server-ca.key")))
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	certificate, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "boot test server"},
		NotBefore:    ca.NotBefore,
		NotAfter:     ca.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.ParseIP(qemuHost), net.IPv4(127, 0, 0, 1)},
	}, ca, key.Public(), caKey)
	must(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "server.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "server.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}

func readPEM(t *testing.T, file string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(read(t, file)))
	if block == nil {
		t.Fatalf("%s is no PEM file", file)
	}
	return block.Bytes
}
