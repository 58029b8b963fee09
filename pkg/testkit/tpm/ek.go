package tpm

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// Vendor is a TPM vendor's CA.
type Vendor struct{ *pki.CA }

// NewVendor makes a vendor with a root of its own.
func NewVendor(t testing.TB) *Vendor {
	t.Helper()
	return &Vendor{pki.NewCA(t, "Test TPM Vendor Root", nil)}
}

// Intermediate makes a CA under the vendor's, which certifies in its place.
func (v *Vendor) Intermediate(t testing.TB) *Vendor {
	t.Helper()
	return &Vendor{pki.NewCA(t, "Test TPM Vendor Intermediate", v.CA)}
}

// Install writes the vendor's certificate into a directory of trusted roots.
func (v *Vendor) Install(t testing.TB, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vendor.pem"), pki.PEM(v.Cert), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Certify makes an EK certificate as vendors do: the TPM's description in a
// critical subject alternative name, the EK's extended key usage, no subject.
// changes may spoil it.
func (v *Vendor) Certify(t testing.TB, public any, changes ...pki.Change) []byte {
	t.Helper()
	var values []any
	for _, value := range []string{"id:54455354", "Test TPM", "id:00010002"} {
		values = append(values, asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(value)})
	}
	san := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: pki.TPMName(t, values...)}
	ek := func(c *x509.Certificate) {
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageKeyEncipherment, nil
		c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}
		c.ExtraExtensions = []pkix.Extension{san}
	}
	return v.Issue(t, public, pkix.Name{}, append([]pki.Change{ek}, changes...)...).Raw
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
	PutNV(t, tpm, CertificateRSA, v.Certify(t, EK(t, tpm, tpm2.RSAEKTemplate)))
}
