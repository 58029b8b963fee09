package idevid

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// idevidCertificate gets the certificate and puts it into NV for good. Moves,
// each of which a power cut may follow:
//
//	enrol    ask the CA; chain and CA certificates are staged on disk
//	write    define the index and write the leaf
//	lock     once it has been read back byte for byte
//	forget   the request, if a cut came between its answer and this
type idevidCertificate struct{ *Program }

func (idevidCertificate) Name() string { return "idevid-certificate" }

// The attributes of the index. WRITEDEFINE makes a write lock permanent
// (Part 2, clause 13.4); everybody may read, nobody's reading or failing
// counts towards the lockout.
var (
	platformIndex = tpm2.TPMANV{PPWrite: true, PPRead: true, OwnerRead: true, AuthRead: true,
		NoDA: true, WriteDefine: true, PlatformCreate: true}
	ownerIndex = tpm2.TPMANV{OwnerWrite: true, PPRead: true, OwnerRead: true, AuthRead: true,
		NoDA: true, WriteDefine: true}
)

// storage is the hierarchy that the index is made in, and its attributes.
func (p *Program) storage() (tpm2.TPMHandle, tpm2.TPMANV) {
	if p.cfg.IDevID.Storage == config.StorageOwner {
		return tpm2.TPMRHOwner, ownerIndex
	}
	return tpm2.TPMRHPlatform, platformIndex
}

// content is what the index holds.
type content struct {
	index  *tpm.Index
	data   []byte
	cert   *x509.Certificate // nil: no certificate, or half of one
	ours   bool              // the certificate is for the IDevID key
	half   bool              // what a write of ours leaves that was cut
	made   bool              // the index is of this step's making
	locked bool
}

// made says whether the attributes are those that this step gives an index.
func made(index *tpm.Index) bool {
	plain := index.Attributes
	plain.Written, plain.WriteLocked = false, false
	return plain == platformIndex || plain == ownerIndex
}

// locked says whether nobody can write the index ever again.
func locked(index *tpm.Index) bool {
	return index.Attributes.WriteLocked && index.Attributes.WriteDefine
}

// hierarchy is the one that the index was made in.
func (c *content) hierarchy() tpm2.TPMHandle {
	if c.index.Attributes.PlatformCreate {
		return tpm2.TPMRHPlatform
	}
	return tpm2.TPMRHOwner
}

func (p *Program) readContent() (*content, error) {
	if !slices.Contains(p.vendor.indices, tpm.IndexIDevID) {
		return nil, fmt.Errorf("cannot read the NV index %#x: %w", uint32(tpm.IndexIDevID), tpm.ErrNotFound)
	}
	index, err := p.tpm.Index(tpm.IndexIDevID)
	if err != nil {
		return nil, err
	}
	c := &content{index: index, locked: locked(index), made: made(index)}
	if !index.Attributes.Written {
		c.half = true
		return c, nil
	}
	if c.data, err = p.tpm.Read(index); err != nil {
		return nil, err
	}
	if c.cert, err = x509.ParseCertificate(c.data); err == nil {
		public, err := p.key.PublicKey()
		if err != nil {
			return nil, err
		}
		c.ours = devid.SameKey(public, c.cert.PublicKey)
	}
	if chain, err := identity.ReadChain(p.files); err == nil {
		c.half = halfOf(c.data, chain.Leaf.Raw)
	}
	return c, nil
}

// halfOf says whether data is what is in an index after a write of whole that
// was cut between two pieces: its beginning, then what the TPM fills an index
// with.
func halfOf(data, whole []byte) bool {
	if len(data) != len(whole) {
		return false
	}
	n := 0
	for n < len(data) && data[n] == whole[n] {
		n++
	}
	// The specification leaves the filler to the TPM's maker.
	rest := data[n:]
	return n > 0 && (bytes.Count(rest, []byte{0xff}) == len(rest) || bytes.Count(rest, []byte{0}) == len(rest))
}

func (s idevidCertificate) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{Object: fmt.Sprintf("NV %#x", uint32(tpm.IndexIDevID))}
	if s.key == nil {
		return step.WaitsFor(obs.Object, idevidKey{}.Name()), nil
	}
	c, err := s.readContent()
	s.content = c
	if errors.Is(err, tpm.ErrNotFound) {
		if staged, err := s.staged(); err != nil {
			return obs, err
		} else if staged != nil {
			obs.State, obs.Detail = step.Partial, "the certificate is on disk but not in the TPM"
		} else {
			obs.Detail = identity.NotYet(s.files)
		}
		return obs, nil
	}
	if err != nil {
		return obs, err
	}
	switch {
	case c.cert != nil && !c.ours && !c.half:
		obs.State, obs.Detail = step.Conflict, fmt.Sprintf("there is a certificate for another key: %s", c.cert.Subject)
		obs.Hint = "has this TPM been cleared, or given an IDevID by somebody else? Nothing of it is overwritten"
	case !c.ours && !(c.made && c.half):
		obs.State, obs.Detail = step.Conflict, "the index is somebody else's"
		obs.Hint = "if nothing needs the index, remove it: tpm2_nvundefine"
	case !c.ours && c.locked:
		obs.State, obs.Detail = step.Conflict, "the index is locked and holds no certificate"
		obs.Hint = "only the platform's authorisation can remove the index: tpm2_nvundefine -C p"
	case !c.ours:
		obs.State, obs.Detail = step.Partial, "the certificate is not written, or only half of it"
	case !c.locked && c.made:
		obs.State, obs.Detail = step.Partial, "the certificate is not locked"
	case !c.locked:
		obs.State, obs.Detail = step.Present, "adopted"
		obs.Warnings = append(s.warnings(c), "the index is of somebody else's making and lets the certificate be changed")
	default:
		obs.State, obs.Detail = step.Present, "locked"
		obs.Warnings = s.warnings(c)
	}
	if c.ours {
		obs.Certificate = identity.Describe(c.cert)
	}
	if obs.State == step.Present && s.files.Has(identity.FileRequest) {
		obs.State, obs.Detail = step.Partial, "the request that was answered is still kept"
	}
	return obs, nil
}

// warnings are what is not as it could be with a certificate that is locked
// and can't be changed any more.
func (p *Program) warnings(c *content) []string {
	var list []string
	if !c.index.Attributes.PlatformCreate {
		list = append(list, "the certificate is in the owner hierarchy, where TPM2_Clear and the owner can remove it")
	}
	if want, err := p.name(p.ek.Name); err != nil {
		list = append(list, fmt.Sprintf("the name cannot be compared with the configuration: %v", err))
	} else if got := c.cert.Subject; got.CommonName != want.CommonName {
		list = append(list, fmt.Sprintf("the common name is %q, the configuration says %q", got.CommonName, want.CommonName))
	}
	if !c.cert.NotAfter.Equal(devid.NoExpiry()) {
		list = append(list, fmt.Sprintf("the certificate ends on %s, and nothing can renew it", c.cert.NotAfter.Format(time.DateOnly)))
	}
	return list
}

// staged is the chain on disk when it is as a CA's answer must be now: for this
// key, and with the name that the configuration asks for. What is not is got
// again, before a mistake is locked for good.
func (p *Program) staged() (*devid.Chain, error) {
	chain, err := identity.ReadChain(p.files)
	if errors.Is(err, fs.ErrNotExist) || step.ClassOf(err) == step.Refused {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	roots, err := identity.ReadCA(p.files)
	if errors.Is(err, fs.ErrNotExist) || step.ClassOf(err) == step.Refused {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	public, err := p.key.PublicKey()
	if err != nil {
		return nil, err
	}
	subject, err := p.name(p.ek.Name)
	if err != nil {
		return nil, err
	}
	_, err = identity.Check(chain, devid.Expect{
		Key: public, Subject: subject, AnySubject: p.cfg.IDevID.Enroll.AnySubject, Outlives: true, Roots: roots, At: p.clock().Time})
	if err != nil && !identity.Undecided(err, p.clock()) {
		return nil, nil
	}
	return chain, nil
}

func (s idevidCertificate) Act(ctx context.Context, obs step.Observation) error {
	if c := s.content; c != nil && c.ours && (c.locked || !c.made) {
		return s.files.Remove(identity.FileRequest)
	}
	chain, err := s.staged()
	if err != nil {
		return err
	}
	if c := s.content; c != nil && chain != nil && bytes.Equal(c.data, chain.Leaf.Raw) {
		return s.tpm.Lock(c.hierarchy(), c.index)
	}
	if chain == nil {
		// What is in the index is recognised by what is on disk, and that is about
		// to change.
		if c := s.content; c != nil && c.index.Attributes.Written {
			return s.tpm.Undefine(c.hierarchy(), c.index)
		}
		if chain, err = s.enrol(ctx); err != nil {
			return err
		}
	}
	return s.write(s.content, chain.Leaf.Raw)
}

// enrol asks the CA for the certificate and stages it.
func (p *Program) enrol(ctx context.Context) (*devid.Chain, error) {
	subject, err := p.name(p.ek.Name)
	if err != nil {
		return nil, err
	}
	signer, err := p.tpm.Signer(p.key)
	if err != nil {
		return nil, err
	}
	p.order = identity.Order{
		Config: p.cfg, Enroll: p.cfg.IDevID.Enroll, Section: "idevid.enroll",
		Files: p.files, Clock: p.clock,
		Key: signer.Public(), Subject: subject, NoExpiry: true,
		Sign: func() ([]byte, error) { return devid.CSR(signer, subject) },
	}
	return identity.Enrol(ctx, p.order)
}

// Postpone keeps when the CA is to be asked again.
func (s idevidCertificate) Postpone(until time.Time, failures int) error {
	return s.order.Postpone(until, failures)
}

// name is the subject that the IDevID certificate must carry, on a TPM whose EK
// has the name given.
func (p *Program) name(ek []byte) (pkix.Name, error) {
	c := p.cfg.IDevID
	return identity.Names{CommonName: c.CommonName, SerialNumber: c.SerialNumber, Organization: c.Organization}.Subject(p.device, ek)
}

// write puts the certificate into the index, which is defined first, and anew
// where its size is another one.
func (p *Program) write(c *content, der []byte) error {
	if c != nil && int(c.index.DataSize) != len(der) {
		if err := p.tpm.Undefine(c.hierarchy(), c.index); err != nil {
			return err
		}
		c = nil
	}
	if c != nil {
		return p.tpm.Write(c.hierarchy(), c.index, der)
	}
	hierarchy, attributes := p.storage()
	if err := p.define(hierarchy, attributes, len(der)); err != nil {
		return err
	}
	index, err := tpm.NewIndex(tpm.IndexIDevID, attributes, len(der))
	if err != nil {
		return err
	}
	return p.tpm.Write(hierarchy, index, der)
}

func (p *Program) define(hierarchy tpm2.TPMHandle, attributes tpm2.TPMANV, size int) error {
	// Said before it is done: the answer may be lost.
	p.vendor.indices = append(p.vendor.indices, tpm.IndexIDevID)
	err := p.tpm.Define(hierarchy, tpm.IndexIDevID, attributes, size)
	switch {
	case errors.Is(err, tpm2.TPMRCNVSpace):
		return step.Hint(err, "the TPM's memory is full: persistent keys, and %s; remove what nobody needs: tpm2_nvundefine, tpm2_evictcontrol", p.sizes())
	case errors.Is(err, tpm2.TPMRCSize):
		// By itself the error is one that may pass. The certificate is not asked for again at each run, which a
		// CA would answer with another one each time.
		return &step.Error{Class: step.Refused, Err: err, Hint: fmt.Sprintf("the certificate is larger than an index of this TPM: when the CA issues a smaller one, move %s away",
			p.files.Path(identity.FileCertificate))}
	case tpm.Denied(err) && p.cfg.TPM.PlatformAuth != "":
		return err // by the secret that the configuration names
	case hierarchy == tpm2.TPMRHPlatform && step.ClassOf(err) == step.Refused:
		return step.Hint(err, "the firmware has closed the platform hierarchy: [idevid] storage = \"owner\" keeps the certificate in the owner's; if it was open once, somebody else has closed it since the last reset, and a restart opens it")
	}
	return err
}

// sizes are the NV indices that are there, the largest first.
func (p *Program) sizes() string {
	var list []*tpm.Index
	for _, handle := range p.vendor.indices {
		// What cannot be looked at is left out: this is for a hint.
		if index, err := p.tpm.Index(handle); err == nil {
			list = append(list, index)
		}
	}
	slices.SortFunc(list, func(a, b *tpm.Index) int { return cmp.Compare(b.DataSize, a.DataSize) })
	var text []string
	for _, index := range list {
		text = append(text, fmt.Sprintf("%#x of %d bytes", uint32(index.NVIndex), index.DataSize))
	}
	const most = 8
	if len(text) > most {
		text = append(text[:most], fmt.Sprintf("%d smaller ones", len(text)-most))
	}
	return strings.Join(text, ", ")
}
