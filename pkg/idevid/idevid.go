// Package idevid gives a device its manufacturer identity: the steps of
// tpm2cloud-idevid, in their order.
//
//	ek-key              the endorsement key, as the TPM's vendor certified it,
//	                    at 0x81010001 (RSA 2048) or 0x8101000A (P-256)
//	state               what is on the disk was made with this TPM
//	ek-certificate      its certificate: of a vendor that is trusted, and of a
//	                    key that is proven to be in this TPM
//	idevid-key          a key under the EK, at 0x81020000
//	idevid-certificate  its certificate from the manufacturer's CA, in NV
//	                    0x01C90000, locked for good
//	platform            closed: nobody can undo the above with an empty
//	                    platform authorisation
//
// A step is one file. What one step learns and another needs is in [Program];
// what outlives the run is in the TPM and in the state directory:
//
//	idevid/ek.pem           the EK certificate and its chain, as verified
//	idevid/ek.json          the EK that later sessions are salted to
//	idevid/key.json         the IDevID key's blobs, of use in this TPM only
//	idevid/request.csr      a request that a CA has not answered yet
//	idevid/certificate.pem  the IDevID certificate and its chain
//	idevid/ca.pem           the CA certificates it chains to
package idevid

import (
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/clock"
	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/device"
	"github.com/tpm2cloud/tpm2cloud/pkg/ek"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// Program is one run of tpm2cloud-idevid.
type Program struct {
	cfg    *config.Config
	tpm    *tpm.TPM
	device *device.Info
	clock  func() clock.Clock // read anew: it may be set while a run waits
	files  *store.Dir

	// What the vendor put into NV does not change in a run: it is read once.
	vendor *vendor
	// Nor do the vendors' roots on the disk.
	trust *ek.Trust

	ek     *tpm.Key // as ek-key saw it
	proven bool     // the certified key is in this TPM
	key    *tpm.Key // the IDevID, as idevid-key saw it
	// What steps saw last, for their own moves.
	ekRecord    identity.EK
	ekChain     []byte
	content     *content // of the index; nil: it is not defined
	order       identity.Order
	hierarchies hierarchies
	aside       []string // which certificates of another TPM this run has set aside
	// resetRefused is why the lockout hierarchy would not serve in this run.
	resetRefused error
}

// New makes a run. It reads nothing and changes nothing.
func New(cfg *config.Config, t *tpm.TPM, board *device.Info, now func() clock.Clock) *Program {
	return &Program{cfg: cfg, tpm: t, device: board, clock: now, files: identity.Dir(cfg, identity.IDevID)}
}

// Steps are the program; where a reset has left something to this boot, that
// comes first.
func (p *Program) Steps() []step.Step {
	return append(p.finish(),
		ekKey{p},
		stateStep{p},
		ekCertificate{p},
		idevidKey{p},
		idevidCertificate{p},
		platform{p},
	)
}

// prepare finds out, before the first change of the TPM, what would stop the
// run afterwards: a secret or file that is not there, a name that cannot be
// made, no room on the disk.
func (p *Program) prepare() error {
	if err := identity.Ready(p.cfg, p.cfg.IDevID.Enroll, p.files); err != nil {
		return err
	}
	// The EK's name is not known yet; any other will do for a try.
	if _, err := p.name(make([]byte, 34)); err != nil {
		return err
	}
	return p.files.Room(room)
}

// room is more than a run writes: the EK's record and chain, the key's blobs, the
// request, the certificate and its CA, a page for each at least.
const room = 32 << 10

// vendor is what the TPM's vendor left in NV.
type vendor struct {
	found   *ek.Found
	indices []tpm2.TPMHandle // that are defined, the vendor's or not
	entry   *ek.Entry        // the certificate that decides; nil: none can be used
	err     error            // why there is none
	// template and nonce of the entry's slot, where NV has them
	template, nonce []byte
}

// readVendor reads the vendor's certificates, once in a run.
func (p *Program) readVendor() (*vendor, error) {
	if p.vendor != nil {
		return p.vendor, nil
	}
	indices, err := p.tpm.Indices()
	if err != nil {
		return nil, err
	}
	defined := make([]uint32, len(indices))
	for i, index := range indices {
		defined[i] = uint32(index)
	}
	read := func(index uint32) ([]byte, error) {
		public, err := p.tpm.Index(tpm2.TPMHandle(index))
		if err != nil {
			return nil, err
		}
		data, err := p.tpm.Read(public)
		if err != nil && step.ClassOf(err) != step.Temporary {
			err = fmt.Errorf("%w: %w", ek.ErrUnreadable, err)
		}
		return data, err
	}
	found, err := ek.Find(defined, read)
	if err != nil {
		return nil, fmt.Errorf("cannot read the EK certificate: %w", err)
	}
	v := &vendor{found: found, indices: indices}
	if v.entry, v.err = found.Usable(); v.err == nil {
		for _, beside := range []struct {
			index uint32
			data  *[]byte
		}{{v.entry.Slot.Template, &v.template}, {v.entry.Slot.Nonce, &v.nonce}} {
			if !slices.Contains(defined, beside.index) {
				continue
			}
			if *beside.data, err = read(beside.index); err != nil {
				return nil, err
			}
		}
	}
	p.vendor = v
	return v, nil
}
