package tpm

import (
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// The handles and indices of TCG's TPM 2.0 Provisioning Guidance, table 2.
const (
	HandleSRK    tpm2.TPMHandle = 0x81000001
	HandleLDevID tpm2.TPMHandle = 0x81000002 // the reference's place beside the SRK
	HandleEKRSA  tpm2.TPMHandle = 0x81010001
	HandleEKECC  tpm2.TPMHandle = 0x8101000A
	HandleIDevID tpm2.TPMHandle = 0x81020000

	IndexIDevID tpm2.TPMHandle = 0x01C90000
)

// SRKTemplate is the TCG's ECC P-256 storage root key, which is not subject to
// the dictionary attack lockout (Provisioning Guidance, 7.5.1).
var SRKTemplate = tpm2.ECCSRKTemplate

// EKTemplate is the template of an endorsement key: L-1 (RSA 2048) and L-2
// (P-256) in the low range of the certificates' indices, H-1 and H-2 in the
// high range (EK Credential Profile 2.5, B.3 and B.4). Those of the high range
// have an empty unique field, may be used with an authorisation value as well,
// and their policy has a second branch.
func EKTemplate(rsa, high bool) tpm2.TPMTPublic {
	template := tpm2.ECCEKTemplate
	if rsa {
		template = tpm2.RSAEKTemplate
	}
	if !high {
		return template
	}
	template.ObjectAttributes.UserWithAuth = true
	template.AuthPolicy = tpm2.TPM2BDigest{Buffer: slices.Clone(policyB)}
	if rsa {
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	} else {
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	}
	return template
}

// DevIDTemplate is the template of an IDevID or LDevID: fixed to this TPM and
// parent, made by it, not subject to the dictionary attack lockout (three
// power cuts would lock the identity out), and with no scheme of its own,
// because TLS and PKCS#11 choose one for each signature. An RSA key may
// decrypt as well: raw RSA is how PKCS#11 and some TPMs make a PSS signature.
func DevIDTemplate(rsa bool) tpm2.TPMTPublic {
	attributes := tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
		UserWithAuth: true, NoDA: true, SignEncrypt: true, Decrypt: rsa,
	}
	if rsa {
		return tpm2.TPMTPublic{
			Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048,
				Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
				Scheme:    tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgNull}}),
			Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{}),
		}
	}
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256,
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme:    tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull},
			KDF:       tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

// SealTemplate is the template of a sealed object that is opened by its
// authorisation value and not subject to the dictionary attack lockout.
func SealTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{}),
	}
}

// StorageKey says whether others can be made under a key: restricted,
// decrypting, and fixed to this TPM.
func StorageKey(public tpm2.TPMTPublic) bool {
	a := public.ObjectAttributes
	return a.Restricted && a.Decrypt && !a.SignEncrypt && a.FixedTPM && a.FixedParent &&
		(public.Type == tpm2.TPMAlgRSA || public.Type == tpm2.TPMAlgECC)
}
