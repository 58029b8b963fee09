package edgecfg

// estMTLS has certd request an operational certificate over EST with the
// LDevID as the client certificate of the TLS connection, and with a user name
// and password as well where both are configured.
//
// certd takes the LDevID for a certificate that it may renew, by default with a
// new key at 80 % of its life. That can never work in this mode (nobody
// may make the new key), and with the old key it would put an operational
// certificate into the LDevID's file. So: the file is not certd's to write
// (files.go), and the renewal is put off to the last day. The LDevID must
// outlive the device, or be renewed by tpm2cloud-ldevid: with an expired one
// certd does not start at all.
//
// "device-id" is never among the preloaded keys here: identityd deletes that
// key at the first boot, because its certificate is not there yet.
func estMTLS(in *inputs) superConfig {
	s := in.overEST()
	s.est.identity = &keyPair{cert: fileURL(in.ldevid), key: in.token.key()}
	s.est.identityAutoRenew = &autoRenew{rotateKey: false, threshold: "1day", retry: "1day"}
	return s
}
