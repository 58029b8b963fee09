// Package devid holds the rules of device identities: their names, their certificate requests, and what a
// CA may send back. All of it is pure functions; keys are reached through [crypto.Signer] and the time is
// an argument.
//
// A DevID (IEEE 802.1AR-2018) is a key that never leaves the device, here one in the TPM, and a
// certificate for it. The manufacturer's is the IDevID, the owner's the LDevID; the operational certificate
// that a cloud service sees is made the same way. The order of use is
//
//	subject := devid.Subject(commonName, serialNumber, organization)
//	csr, err := devid.CSR(key, subject)
//	// … the CA answers …
//	chain, err := devid.Check(answer, devid.Expect{Key: key.Public(), Subject: subject, Roots: caCertificates, At: now})
//	os.Write(chain.PEM())
//
// and at every later boot, with what was kept, the same [Check] again: there is one definition of a
// good certificate.
//
// # Names
//
// The subject is a common name, the X.520 serialNumber attribute with the device's serial number
// (802.1AR-2018, clause 8), and the organization, where there is one. The first two have at most
// 64 characters (RFC 5280, appendix A.1: ub-common-name, ub-serial-number). A name that DPS takes as a
// registration id is narrower still: see [DPSName].
//
// # What a CA may send back
//
// The answer is a heap of certificates in any order. [Check] picks the one for our key and refuses it when
//
//   - there is none ([ErrOtherKey]), or there are two that differ ([ErrAmbiguous]);
//   - it is a CA's ([ErrIsCA]);
//   - its subject is not the one that was asked for ([SubjectError]), unless the caller allows any;
//   - no chain leads to a trusted root ([ChainError]), or one does and the dates alone forbid it
//     ([DateError]), which a device whose clock is not set may take for temporary; where the certificate is one that
//     outlives its CAs, such as an IDevID that is kept, their end is a warning;
//   - its key usage lacks digitalSignature ([ErrNoSignature]), without which TLS cannot use it, or its
//     extended key usage lacks clientAuth where that is needed ([ErrNoClientAuth]). The other end of
//     a TLS connection would only say "bad certificate".
//
// What is lawful but rarely meant is a warning in [Chain]: an IDevID that ends (802.1AR-2018, clause 8, wants
// the notAfter 99991231235959Z), and an LDevID without any extended key usage, which RFC 5280 (section 4.2.1.12)
// takes for all purposes and some servers for none.
//
// # Roots
//
// The trusted certificates are those of one CA, as /cacerts or a file lists them: a root, perhaps with its
// issuing CAs, perhaps an issuing CA alone. The self-signed ones are the anchors and the others help
// to find the way; if none is self-signed, all are anchors. See [Anchors].
//
// Signatures with MD5 or SHA-1 are worth nothing (crypto/x509 refuses them). Revocation is
// not checked: that is for the server to which the device shows itself.
package devid
