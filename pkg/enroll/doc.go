// Package enroll gets certificates: from a certificate request to a chain that was checked. Each method of
// the configuration is one file.
//
//	ca          ca.go      signed here with a CA's key in a file; for benches
//	est-secret  secret.go  EST with a shared secret
//	est-ba      basic.go   EST with a user name and a password
//	est-mtls    mtls.go    EST with the IDevID as TLS client certificate
//
// The est methods do the same in the same order (est.go): read the CA file that the server is verified by,
// fetch /cacerts over the verified connection, send the request, and check the answer against what
// /cacerts said (pkg/devid). What the CA certifies is judged by the CA's own certificates and by nothing else, so that a
// server with a public TLS certificate can front a private CA.
//
// [Enroller.Enroll] makes one attempt. Whether there is another is for the runner of pkg/step to decide, by
// the class of the error:
//
//	temporary (75)       no connection, a broken one, an answer that is no HTTP, a TLS alert that says internal_error, 202,
//	                     408, 425, 429 and 5xx; dates that are wrong while the clock is unverified. Retry-After is kept, up to a day.
//	server refused (76)  401 and 403, every other 4xx, a redirect, the refusal of our client certificate, and an answer
//	                     that is not EST (an HTML page): the server was verified, so it's no captive portal but
//	                     a wrong port, a wrong label or a misconfigured server, and asking again won't help.
//	refused (65)         the server could not be verified, or the certificate is not what it must be
//	configuration (78)   a file or a secret that the configuration names cannot be used
//
// Files and secrets are read when they are needed, in Enroll and not in [New]: a device that has its certificate must boot
// without the password that it was enrolled with.
package enroll
