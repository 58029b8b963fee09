// Package edgecfg is the program tpm2cloud-edgecfg: it configures the Azure IoT
// Identity Service, and with it Azure IoT Edge, to work with the LDevID that
// tpm2cloud-ldevid left behind, and has the configuration applied.
//
// # Steps
//
//	ldevid   the LDevID certificate, its chain and the token's PIN are there and good today
//	names    the device can have its name at DPS
//	files    certificates, keyd's drop-in and config.toml are written
//	apply    the agent runs with them, and its keyd can open the key
//	secrets  those of the enrolment are wiped, where the configuration says so
//
// Files and apply are entered only when there is something to change, and first
// look for all that would make the agent destroy something: the system's clock,
// the EST server and its certificate, the password, the directories that certd
// must read. If one of these is bad nothing is written and nothing applied: an agent
// that works goes on with what it has. With everything in its place a run reads a dozen
// files, sends no request and writes nothing.
//
// # Methods
//
//	dps       dps.go      the LDevID itself is what DPS sees
//	est-ba    estba.go    an operational certificate, requested over EST with a password
//	est-mtls  estmtls.go  an operational certificate, requested over EST with the LDevID
//
// A method is a function that fills in a superConfig (super.go). The text of
// config.toml (render.go), the list of files (files.go) and what the daemons'
// own configuration must be afterwards (applied.go) are made of that.
//
// # Files
//
// Below the root, with the state directory of the configuration as STATE:
//
//	reads   STATE/ldevid/certificate.pem           leaf, then its chain
//	        STATE/pins/user-pin                    of the token
//	        /etc/group                             which groups there are
//	        /etc/aziot/*/config.d/00-super.toml    what the daemons run
//	        /var/lib/aziot/identityd/device_info   the device as identityd keeps it
//	writes  /etc/aziot/config.toml                 0600 root:root
//	        /etc/aziot/tpm2cloud/ldevid.pem        0640 root:aziotcs
//	        /etc/aziot/tpm2cloud/est-ca.pem        0640 root:aziotcs, where server_ca names a file
//	        /etc/systemd/system/aziot-keyd.service.d/50-tpm2cloud.conf   0644 root:root
//	        /etc/systemd/system/aziot-certd.service.d/50-tpm2cloud.conf  0644 root:root
//	        STATE/edge/apply, STATE/edge/reprovision   0600, marks of what was begun
//	removes /var/lib/aziot/certd/certs/deviceid-*.cer  if it is for another device id
//	        the files of the enrolment's secrets       if wipe_secret is set
//
// config.toml is 0600 because it holds the PIN and the password of the EST
// server: keyd reads a PIN from the URI only. The certificates are not certd's to
// write, or it would replace the LDevID by an operational certificate. Their directories are
// root:root 0755: aziotctl's checks want read and search for all on every parent.
// Where the group aziotcs does not exist yet, root's has the files, and the next
// run gives them to it. A user other than root, below another root, changes no owner.
//
// [Program.Removal] takes all of this away again, when the device changes its
// owner, with what the daemons made of it.
//
// The first line of config.toml holds the digest of the rest. A config.toml
// without it, or with another content than its digest, was edited by somebody: it is
// kept as config.toml.DIGEST.bak before it is replaced, and each run warns of the
// copy until it is gone.
//
// # What it rests on
//
// Read in the sources of the Identity Service, 1.5 and 1.6:
//
//   - Unknown keys of config.toml are ignored without a word, except those of
//     [aziot_keys], which kill keyd.
//   - "config apply" writes one 00-super.toml for each daemon and restarts them.
//     It looks at no key and no certificate, and exits with 0 whether the
//     services start or not. So this program asks keyd for the key itself, over its socket.
//   - identityd that knows a registration id and cannot get its certificate deletes
//     the key "device-id" and makes another one. So dps has no registration
//     id, the LDevID is never "device-id" with EST, and nothing is
//     applied while the EST server cannot be used.
//   - identityd keeps the device that DPS gave it and asks DPS no more. A changed
//     id scope, endpoint or device id takes "system reprovision"; so does an image that was
//     cloned from a device.
//   - The daemons are started by their sockets, and by the apply. So none of
//     aziot's units is ordered after this program, or it would wait for itself.
//
// The agent need not be installed: the files are written, the step apply says what
// it waits for, and the run ends well.
//
// The package links no TPM and no cgo. It runs programs and speaks to the agent's
// sockets in apply.go alone.
package edgecfg
