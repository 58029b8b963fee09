package identity

import (
	"crypto/x509/pkix"

	"github.com/tpm2cloud/tpm2cloud/pkg/device"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
)

// Names are the patterns of a subject in the configuration.
type Names struct {
	CommonName, SerialNumber, Organization string
	// Lower: the common name becomes one that DPS takes, whose names are in
	// lower case.
	Lower bool
}

// Subject fills the patterns in from what the board says of itself and from the
// name of its EK.
func (n Names) Subject(board *device.Info, ek []byte) (pkix.Name, error) {
	expand := board.Expand
	if n.Lower {
		expand = board.ExpandLower
	}
	commonName, err := expand(n.CommonName, ek)
	if err != nil {
		return pkix.Name{}, err
	}
	serial, err := board.Expand(n.SerialNumber, ek)
	if err != nil {
		return pkix.Name{}, err
	}
	organization, err := board.Expand(n.Organization, ek)
	if err != nil {
		return pkix.Name{}, err
	}
	return devid.Subject(commonName, serial, organization), nil
}
