package token

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

func signDigest(t *testing.T, s *Signer) {
	t.Helper()
	digest := sha256.Sum256([]byte("x"))
	sig := must[[]byte](t)(s.Sign(rand.Reader, digest[:], crypto.SHA256))
	if pub, ok := s.Public().(*rsa.PublicKey); ok {
		if err := rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest[:], sig); err != nil {
			t.Error(err)
		}
		for _, salt := range []int{rsa.PSSSaltLengthEqualsHash, rsa.PSSSaltLengthAuto, 7} {
			opts := &rsa.PSSOptions{SaltLength: salt, Hash: crypto.SHA256}
			sig := must[[]byte](t)(s.Sign(nil, digest[:], opts))
			if err := rsa.VerifyPSS(pub, crypto.SHA256, digest[:], sig, opts); err != nil {
				t.Errorf("salt %d: %v", salt, err)
			}
		}
	}
}

// handshake makes a TLS connection in which the Signer is the client's key.
func handshake(t *testing.T, key crypto.Signer, version uint16) {
	t.Helper()
	selfSigned := func(key crypto.Signer) []tls.Certificate {
		return []tls.Certificate{pki.TLS(key, (&pki.CA{Key: key}).Issue(t, key.Public(), pkix.Name{CommonName: "device"}))}
	}
	server := selfSigned(pki.NewRSAKey(t))
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	result := make(chan error, 1)
	go func() {
		c := tls.Server(b, &tls.Config{
			Certificates: server,
			ClientAuth:   tls.RequireAnyClientCert, MinVersion: version, MaxVersion: version,
		})
		err := c.Handshake()
		if err == nil && len(c.ConnectionState().PeerCertificates) != 1 {
			err = errors.New("no client certificate")
		}
		if err == nil {
			_, err = c.Write([]byte("k"))
		}
		result <- err
	}()
	c := tls.Client(a, &tls.Config{InsecureSkipVerify: true, Certificates: selfSigned(key),
		MinVersion: version, MaxVersion: version})
	if err := c.Handshake(); err != nil {
		t.Errorf("TLS %x, client: %v", version, err)
	}
	c.Read(make([]byte, 1))
	if err := <-result; err != nil {
		t.Errorf("TLS %x, server: %v", version, err)
	}
}

// The padding of PKCS #1 without a TPM: against crypto/rsa, with a key whose private half is at
// hand, and a modulus length that is not a multiple of eight too.
func TestPaddings(t *testing.T) {
	for _, bits := range []int{2048, 2049} {
		key := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, bits))
		raw := func(block []byte) []byte {
			m := new(big.Int).SetBytes(block)
			return m.Exp(m, key.D, key.N).FillBytes(make([]byte, key.Size()))
		}
		for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			h := hash.New()
			h.Write([]byte("x"))
			digest := h.Sum(nil)
			info := must[[]byte](t)(digestInfo(hash, digest))
			block := append([]byte{0, 1}, make([]byte, key.Size()-3-len(info))...)
			for i := range block[2:] {
				block[2+i] = 0xFF
			}
			block = append(append(block, 0), info...)
			if err := rsa.VerifyPKCS1v15(&key.PublicKey, hash, digest, raw(block)); err != nil {
				t.Errorf("%d bits, %v: %v", bits, hash, err)
			}
		}
	}
	if _, err := digestInfo(crypto.MD5, make([]byte, 16)); err == nil {
		t.Error("MD5 accepted")
	}
}
