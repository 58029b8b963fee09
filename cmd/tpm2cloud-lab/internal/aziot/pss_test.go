package aziot

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"math/big"
	"testing"
)

// rawSign is what CKM_RSA_X_509 does.
func rawSign(key *rsa.PrivateKey, block []byte) []byte {
	s := new(big.Int).Exp(new(big.Int).SetBytes(block), key.D, key.N)
	return s.FillBytes(make([]byte, key.Size()))
}

func TestEncodePSS(t *testing.T) {
	t.Parallel()
	digest256, digest512 := sha256.Sum256([]byte("x")), sha512.Sum512([]byte("x"))
	for _, bits := range []int{2048, 2049, 2055} { // the edges of how many bits the first byte has
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			hash   crypto.Hash
			digest []byte
			salt   int
		}{
			{crypto.SHA256, digest256[:], rsa.PSSSaltLengthEqualsHash},
			{crypto.SHA256, digest256[:], rsa.PSSSaltLengthAuto},
			{crypto.SHA512, digest512[:], rsa.PSSSaltLengthEqualsHash},
			{crypto.SHA512, digest512[:], 20},
		} {
			block, err := encodePSS(rand.Reader, test.digest, bits, test.hash, test.salt)
			if err != nil {
				t.Fatal(err)
			}
			if err := rsa.VerifyPSS(&key.PublicKey, test.hash, test.digest, rawSign(key, block), &rsa.PSSOptions{SaltLength: test.salt}); err != nil {
				t.Errorf("%d bits, %v, salt %d: %v", bits, test.hash, test.salt, err)
			}
		}
	}
	if _, err := encodePSS(rand.Reader, digest512[:], 1024, crypto.SHA512, rsa.PSSSaltLengthEqualsHash); err == nil {
		t.Error("SHA-512 with its salt does not fit into 1024 bits, and there is no error")
	}
	if _, err := encodePSS(rand.Reader, digest256[:], 2048, crypto.SHA512, 0); err == nil {
		t.Error("digest of another hash, and no error")
	}
}

func TestDigestInfo(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum384([]byte("x"))
	info, err := digestInfo(crypto.SHA384, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	// With hash 0, Go pads what it is given: CKM_RSA_PKCS.
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, 0, info)
	if err != nil {
		t.Fatal(err)
	}
	if err := rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA384, digest[:], signature); err != nil {
		t.Error(err)
	}
	if _, err := digestInfo(crypto.MD5, digest[:16]); err == nil {
		t.Error("MD5 is no error")
	}
}
