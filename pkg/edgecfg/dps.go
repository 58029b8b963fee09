package edgecfg

// dps registers the device with its LDevID itself: certificate and key are
// preloaded, and no EST server is needed.
//
// There is no registration_id. When identityd cannot read the certificate, be
// it that certd is slow to start, and knows a registration id, it deletes the
// key "device-id", which is the LDevID, and makes another one; without a
// registration id it stops before that, and takes the certificate's common
// name, which the step "names" holds to be the device id.
//
// There is no base slot either, whatever [edge] operational_key says: no
// operational key exists, and with one keyd would make the keys of the
// edge's own CA in the TPM and could not start without the token.
func dps(in *inputs) superConfig {
	s := in.base()
	s.attestation.preloaded = &keyPair{cert: fileURL(in.ldevid), key: in.token.key()}
	return s
}
