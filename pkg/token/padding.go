package token

import (
	"crypto"
	"encoding/asn1"
	"fmt"
)

// hashOID: the algorithm identifiers of DigestInfo (RFC 8017, appendix B.1).
var hashOID = map[crypto.Hash]asn1.ObjectIdentifier{
	crypto.SHA1:   {1, 3, 14, 3, 2, 26},
	crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1},
	crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2},
	crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3},
}

// digestInfo is what a PKCS #1 v1.5 signature has inside its padding (RFC 8017, 9.2).
// Hash 0 means that the caller made it, as for [rsa.SignPKCS1v15].
func digestInfo(hash crypto.Hash, digest []byte) ([]byte, error) {
	if hash == 0 {
		return digest, nil
	}
	oid, ok := hashOID[hash]
	if !ok {
		return nil, fmt.Errorf("hash %v is not supported", hash)
	}
	type algorithm struct {
		OID  asn1.ObjectIdentifier
		NULL asn1.RawValue
	}
	return asn1.Marshal(struct {
		Algorithm algorithm
		Digest    []byte
	}{algorithm{oid, asn1.NullRawValue}, digest})
}
