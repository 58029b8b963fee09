package tpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Vendor is a TPM vendor's CA.
type Vendor struct {
	Root *x509.Certificate // its certificate, which is a root unless it is an Intermediate
	key  *ecdsa.PrivateKey
}

// NewVendor makes a vendor with a root of its own.
func NewVendor(t testing.TB) *Vendor { return newVendor(t, "Test TPM Vendor Root", nil) }

// Intermediate makes a CA under the vendor's, which certifies in its place.
func (v *Vendor) Intermediate(t testing.TB) *Vendor {
	return newVendor(t, "Test TPM Vendor Intermediate", v)
}

// newVendor makes a CA; without a parent it signs itself.
func newVendor(t testing.TB, name string, parent *Vendor) *Vendor {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(20, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent = &Vendor{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.Root, key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &Vendor{certificate, key}
}

// Install writes the root into a directory of trusted roots.
func (v *Vendor) Install(t testing.TB, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Root.Raw})
	if err := os.WriteFile(filepath.Join(dir, "vendor.pem"), block, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Certify makes an EK certificate as vendors do: the TPM's description in a
// critical subject alternative name, the EK's extended key usage, no subject.
// change may spoil it.
func (v *Vendor) Certify(t testing.TB, public any, change func(*x509.Certificate)) []byte {
	t.Helper()
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value string `asn1:"utf8"`
	}
	var names []asn1.RawValue
	for i, value := range []string{"id:54455354", "Test TPM", "id:00010002"} {
		der, err := asn1.Marshal([]attribute{{asn1.ObjectIdentifier{2, 23, 133, 2, i + 1}, value}})
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, asn1.RawValue{FullBytes: append([]byte{0x31}, der[1:]...)}) // a SET
	}
	sequence, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	directory, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: sequence})
	if err != nil {
		t.Fatal(err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{FullBytes: directory}})
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageKeyEncipherment, BasicConstraintsValid: true,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions:    []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, v.Root, public, v.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// EK makes the endorsement key of a TCG template, returns its public key and
// leaves nothing of it loaded or persistent.
func EK(t testing.TB, tpm transport.TPM, template tpm2.TPMTPublic) any {
	t.Helper()
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template)}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
	area, err := rsp.OutPublic.Contents()
	if err != nil {
		t.Fatal(err)
	}
	public, err := tpm2.Pub(*area)
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// Indices of the EK certificates of RSA 2048 and P-256, in the low and in the
// high range, and of their chain.
const (
	CertificateRSA     tpm2.TPMHandle = 0x01C00002
	CertificateECC     tpm2.TPMHandle = 0x01C0000A
	CertificateHighRSA tpm2.TPMHandle = 0x01C00012
	CertificateHighECC tpm2.TPMHandle = 0x01C00014
	// CertificateChain is the first index of the CA certificates.
	CertificateChain tpm2.TPMHandle = 0x01C00100
)

// PutNV defines an index as vendors do and writes it.
func PutNV(t testing.TB, tpm transport.TPM, index tpm2.TPMHandle, data []byte) {
	t.Helper()
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	public := tpm2.TPMSNVPublic{NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)), Attributes: tpm2.TPMANV{
		PPWrite: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true, PlatformCreate: true}}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(public)}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
	for done := 0; done < len(data); done += 1024 {
		name, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tpm)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tpm2.NVWrite{AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: index, Name: name.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[done:min(done+1024, len(data))]}, Offset: uint16(done)}.Execute(tpm)
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Manufacture does to a TPM what its vendor does: it certifies the RSA
// endorsement key and puts the certificate into NV.
func (s *Software) Manufacture(t testing.TB, v *Vendor) {
	t.Helper()
	tpm := s.Open(t)
	PutNV(t, tpm, CertificateRSA, v.Certify(t, EK(t, tpm, tpm2.RSAEKTemplate), nil))
}

// NewCA makes a CA in files: its certificate and its key, as PEM.
func NewCA(t testing.TB, name string) (certificate, key []byte) {
	t.Helper()
	ca := newVendor(t, name, nil)
	private, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
}
