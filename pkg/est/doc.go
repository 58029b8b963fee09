// Package est is a client for Enrollment over Secure Transport, RFC 7030 as amended by RFC 8951. It speaks the
// protocol and judges nothing: what a CA sent back is for pkg/devid to check, and which error is worth
// another try is for pkg/enroll to say.
//
//	client, err := est.New(est.Options{Server: "est.example.com:443", Roots: roots, Username: name, Password: password})
//	ca, err := client.CACerts(ctx)
//	certs, err := client.SimpleEnroll(ctx, csr)
//
// # Operations
//
//	CACerts       GET  https://SERVER/.well-known/est[/LABEL]/cacerts       RFC 7030, section 4.1
//	SimpleEnroll  POST https://SERVER/.well-known/est[/LABEL]/simpleenroll  RFC 7030, section 4.2
//
// Both answer with a CMS SignedData that holds certificates and no signature ("certs-only", RFC 5272, section 4.1),
// encoded in base64. RFC 8951 withdrew the header Content-Transfer-Encoding: none is required. One is
// sent, because GlobalSign's server refuses a request without it, and all others ignore it.
// Base64 is accepted with or without ends of lines (RFC 8951, section 3.1, wants both), and in a PEM block.
//
// Every call makes one attempt. The client never repeats a request that a server has seen, never waits, and follows
// no redirect: RFC 7030 (section 3.2.1) allows one to the same origin only, and a server that
// sends it is one whose address should be corrected in the configuration.
//
// # Trust and credentials
//
// The server's certificate is verified against [Options].Roots or the system's store, for the host name in
// [Options].Server, and never against anything that the server itself sent (RFC 7030, section 3.6.1, the explicit
// and implicit trust anchors; there is no bootstrap on trust of section 4.1.1). The password (HTTP Basic, RFC 7617) and the
// shared secret (the header Secret-Value) are part of the request, which is written only
// after that verification. They never appear in an error: where a server repeats them in its answer, the text is withheld.
//
// A TLS client certificate is always shown when the server asks for one, even if the server's list of
// acceptable CAs does not name its issuer: the server shall say no, not we.
//
// # Hostile servers
//
// An answer has at most 1 MiB, 100 certificates of 256 KiB together, and RSA keys of 8192 bits, its header 64 KiB.
// Compression is off, so that these bounds hold for what is on the wire. Connecting, the TLS handshake and the wait for an answer have a deadline of
// 30 seconds each, the whole exchange of a minute. The decoder bounds how deep an encoding nests.
//
// # Why not the client of github.com/globalsign/est
//
// Its last release (v1.0.6, 2021) imports the old API of go-tpm, which moved elsewhere in go-tpm v0.9: the
// two cannot be in one build. It returns the first certificate only, and cloud services need the chain;
// it demands the header that RFC 8951 withdrew; it makes its own transport without deadline or proxy; and it
// depends on a PKCS#7 module that is archived. Its server has none of these problems, and is
// what tpm2cloud-lab runs: this client is tested against one that this project did not write.
//
// # Why not a PKCS#7 module
//
// The answer is a shell of five ASN.1 elements around DER certificates, and whoever answers chooses its bytes. The general
// modules (the descendants of go.mozilla.org/pkcs7) turn BER into DER first, by a recursion without bound in
// which a child may be longer than its parent. Of github.com/smallstep/pkcs7 v0.2.3 we measured that 200 bytes of
// "30 06 30 02" keep it busy for hours, that its time grows with the square of the nesting, and that on 32-bit
// machines a length of 7fffffff makes it panic. It encodes for our tests; decode.go decodes.
package est
