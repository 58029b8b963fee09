// Package cmd holds the programs. Its own tests run all of them, as built,
// against a software TPM and the lab: each script in testdata is one behaviour
// that a user relies on.
package cmd
