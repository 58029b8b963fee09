// Package ek finds, parses and verifies endorsement key (EK) certificates: the statement of a TPM's
// vendor that a key lives in a genuine TPM of its make.
//
// The package opens no TPM and no network connection. NV is read through a function of the caller's
// ([ReadIndex]), trust comes from directories ([LoadTrust]) and the time is an argument, so that
// the same bytes always get the same verdict. The order of use is
//
//	found, err := ek.Find(definedIndices, read)   // what the TPM holds
//	entry, err := found.Usable()                  // the one that decides
//	trust, err := ek.LoadTrust(dirs...)           // what the operator trusts
//	verdict, err := ek.Verify(entry.Certificate, ek.Options{Anchors: trust.Anchors,
//		Intermediates: found.Chain, At: now})
//	ok := ek.SameKey(entry.Certificate.Key, keyOfTheTPM)
//
// The last line isn't optional. EK certificates are public, and NV of many boards can be written by
// whoever owns them, so a verified certificate says nothing until the TPM has been shown to hold its key.
//
// # Where certificates lie
//
// The TCG EK Credential Profile for TPM 2.0 (versions 2.3 and 2.4) puts the certificate of an RSA-2048
// key at NV index 0x01C00002 and that of a P-256 key at 0x01C0000A (clause 2.2.1.4, "Low Range"),
// and those of further keys from 0x01C00012 on (clause 2.2.1.5, "High Range"). [Slots] lists
// them. Beside a certificate may lie a nonce and a template; only the indices of certificates are read.
// Where the issuer is a CA inside the chip (Intel's On-Die CA), the certificates of its chain lie
// at 0x01C00100 to 0x01C001FF (clause 2.2.1.5.2).
//
// # Format in NV
//
// A certificate is an X.509 certificate in DER. Vendors add to it, and [Parse] accepts:
//
//   - a tail, because the index is larger than the certificate: any number of bytes, all of the same
//     value. 0xFF (STMicroelectronics), 0x00 and 0x11 (Nuvoton) are known. A tail of mixed bytes is
//     refused: it's rather the rest of an earlier, longer content.
//   - the header of a TPM 1.2 (TCG PC Client Specific Implementation Specification 1.21, clause 7.3.2):
//     10 01, the type 00, the size in two bytes, big-endian, and mostly 10 02, which the size counts;
//   - a public key with the algorithm id-RSAES-OAEP, which crypto/x509 leaves nil.
//
// A blob is at most 16 KiB. The chain is a concatenation of DER certificates, cut into as many indices as
// are needed at any byte, in ascending order; see [ParseChain].
//
// # Trust
//
// Every certificate in a trust directory is an anchor: a chain that reaches it is good. It need not
// be self-signed, because vendors' roots often aren't (those of Infineon and STMicroelectronics were issued by
// public CAs); an intermediate CA there is trusted by itself, without its root, and an EK certificate
// there pins that one TPM. It's what OpenSSL does with -partial_chain. The operator's choice of files is the policy.
// What comes out of NV is never trusted: it only helps to find the way to an anchor.
//
// # Verdict
//
// [Verify] refuses a certificate
//
//   - of a CA ([ErrIsCA]), signed with SHA-1 ([ErrSHA1]), with a critical extension that isn't understood
//     ([CriticalExtensionError]), or without the purpose tcg-kp-EKCertificate ([ErrNoEKU]);
//   - from which no path of good signatures leads to an anchor ([UnknownIssuerError]);
//   - that lies in the future, itself or its chain ([NotYetValidError]);
//   - that has expired, itself or its chain ([ExpiredError]), unless [Options].AllowExpired makes
//     it a warning. A TPM outlives its certificate, and its key gets no weaker by the date. Signatures are
//     verified all the same, at a time when the whole chain was valid.
//
// The last two mean that the dates alone are at fault, which a device whose clock isn't set may take for temporary.
// Revocation isn't checked: no vendor's list is reachable without a network.
//
// The subject of an EK certificate is usually empty. The critical subject alternative name in its place holds
// a directoryName with the TPM's manufacturer, model and version (clause 3.2.9 and
// attributes 2.23.133.2.1 to .3), which crypto/x509 doesn't read; this package does, see [Names].
package ek
