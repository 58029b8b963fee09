// Package boottest boots whole machines with this project's packages and looks
// at what they have become: systemd in a container (TestNspawn…), and a kernel
// with a TPM driver in QEMU (TestQEMU…).
//
// What a machine says of itself proves little. Once it is off, tools that know
// nothing of this project read its disk and its TPM: tpm2-tools, openssl,
// pkcs11-tool, sqlite3, journalctl; and the laboratory's log says what was asked
// of it.
//
// The tests have the build tag "boot", because they take minutes, need root and
// start machines: make test-nspawn, make test-boot.
package boottest
