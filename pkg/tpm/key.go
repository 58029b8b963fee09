package tpm

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Key is the public side of a key in the TPM.
type Key struct {
	Handle        tpm2.TPMHandle
	Public        tpm2.TPMTPublic
	Name          []byte // name algorithm and digest of the public area
	QualifiedName []byte // the same over the names of all its parents
}

// Blob is a key as it is kept outside the TPM: the marshalled TPM2B_PUBLIC and
// TPM2B_PRIVATE. Only the TPM that made it can load it, below the same parent.
type Blob struct {
	Public, Private []byte
}

// Of says whether the blob is that of a key.
func (b Blob) Of(k *Key) bool {
	return bytes.Equal(b.Public, tpm2.Marshal(tpm2.New2B(k.Public)))
}

// ReadPublic reads the key at a handle; the error is ErrNotFound where there
// is none.
func (t *TPM) ReadPublic(handle tpm2.TPMHandle) (*Key, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(t.transport)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, fmt.Errorf("cannot read the key at %#x: %w", uint32(handle), ErrNotFound)
	}
	if err != nil {
		return nil, fail(err, "read the key at %#x", uint32(handle))
	}
	public, err := rsp.OutPublic.Contents()
	if err != nil {
		return nil, step.Fail(step.Refused, "cannot read the key at %#x: %w", uint32(handle), err)
	}
	// The name comes from the TPM; a public area of somebody else's beside it
	// would be caught here.
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, step.Fail(step.Refused, "cannot name the key at %#x: %w", uint32(handle), err)
	}
	if !bytes.Equal(name.Buffer, rsp.Name.Buffer) {
		return nil, step.Fail(step.Refused, "cannot trust the key at %#x: its name %x is not that of its public area", uint32(handle), rsp.Name.Buffer)
	}
	if made, ok := t.made[handle]; ok && !bytes.Equal(made, rsp.Name.Buffer) {
		return nil, step.Fail(step.Refused, "cannot trust the key at %#x: its name is %x, and that of the key that was made persistent there is %x", uint32(handle), rsp.Name.Buffer, made)
	}
	return &Key{Handle: handle, Public: *public, Name: rsp.Name.Buffer, QualifiedName: rsp.QualifiedName.Buffer}, nil
}

// Confirm has the TPM confirm that a key is what ReadPublic gave, which anybody
// on the bus could have said: it answers in a session that the key named to
// SaltTo authenticates.
func (t *TPM) Confirm(k *Key) error {
	if err := t.hidden(); err != nil {
		return err
	}
	rsp, err := tpm2.ReadPublic{ObjectHandle: tpm2.NamedHandle{Handle: k.Handle, Name: tpm2.TPM2BName{Buffer: k.Name}}}.
		Execute(t.transport, tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, t.encrypted(hideAnswer)...))
	if Denied(err) {
		// The session's HMAC is over the name of the key, which is not the TPM's.
		return step.Fail(step.Refused, "cannot trust the key at %#x: the TPM itself does not know it: %w", uint32(k.Handle), err)
	}
	if err != nil {
		return fail(err, "confirm the key at %#x", uint32(k.Handle))
	}
	if !bytes.Equal(rsp.Name.Buffer, k.Name) || !bytes.Equal(rsp.QualifiedName.Buffer, k.QualifiedName) {
		return step.Fail(step.Refused, "cannot trust the key at %#x: the TPM itself says that another one is there", uint32(k.Handle))
	}
	return nil
}

// PublicKey is the key as crypto/x509 knows it.
func (k *Key) PublicKey() (crypto.PublicKey, error) {
	pub, err := tpm2.Pub(k.Public)
	if err != nil {
		return nil, step.Fail(step.Refused, "cannot use the key at %#x: %w", uint32(k.Handle), err)
	}
	return pub, nil
}

// PublicArea is the marshalled TPMT_PUBLIC, which the name is the digest of.
func (k *Key) PublicArea() []byte { return tpm2.Marshal(k.Public) }

// Matches says whether a key has the type, the attributes, the policy and the
// parameters of a template; the unique field, the key itself, is free.
func (k *Key) Matches(template tpm2.TPMTPublic) bool {
	if k.Public.Type != template.Type {
		return false
	}
	template.Unique = k.Public.Unique
	return bytes.Equal(tpm2.Marshal(k.Public), tpm2.Marshal(template))
}

// ChildOf says whether the key's qualified name proves the parent, which is a
// primary key of a hierarchy (Part 1, clause 16: the qualified name is the
// digest of the parent's qualified name and the key's name).
func (k *Key) ChildOf(parent *Key, hierarchy tpm2.TPMHandle) bool {
	return bytes.Equal(k.QualifiedName, qualifiedName(qualifiedName(tpm2.HandleName(hierarchy).Buffer, parent.Name), k.Name))
}

// sha256Name is the algorithm identifier that a SHA-256 name begins with.
var sha256Name = []byte{0x00, 0x0b}

func qualifiedName(parent, name []byte) []byte {
	h := sha256.New()
	h.Write(parent)
	h.Write(name)
	return h.Sum(bytes.Clone(sha256Name))
}

// Loaded is a transient key; it must be flushed.
type Loaded struct {
	tpm    *TPM
	Handle tpm2.TPMHandle
	Name   []byte
	Public tpm2.TPMTPublic
}

// Flush frees the slot that the key takes.
func (l *Loaded) Flush() error {
	if _, err := (tpm2.FlushContext{FlushHandle: l.Handle}).Execute(l.tpm.transport); err != nil {
		return fail(err, "flush the transient key %#x", uint32(l.Handle))
	}
	return nil
}

// CreatePrimary makes the primary key of a hierarchy that the template
// determines. The same template gives the same key on every call.
func (t *TPM) CreatePrimary(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (*Loaded, error) {
	rsp, err := protected(t, tpm2.CreatePrimary{
		PrimaryHandle: t.hierarchy(hierarchy),
		InPublic:      tpm2.New2B(template),
	})
	if err != nil {
		return nil, failBy(hierarchy, lacking(err), "create a primary key")
	}
	return t.loaded(rsp.ObjectHandle, rsp.Name, rsp.OutPublic)
}

func (t *TPM) loaded(handle tpm2.TPMHandle, name tpm2.TPM2BName, public tpm2.TPM2BPublic) (*Loaded, error) {
	l := &Loaded{tpm: t, Handle: handle, Name: name.Buffer}
	area, err := public.Contents()
	if err != nil {
		return nil, errors.Join(step.Fail(step.Refused, "cannot use a new key: %w", err), l.Flush())
	}
	own, err := tpm2.ObjectName(area)
	if err != nil || !bytes.Equal(own.Buffer, name.Buffer) {
		return nil, errors.Join(step.Fail(step.Refused, "cannot trust a new key: its name %x is not that of its public area", name.Buffer), l.Flush())
	}
	l.Public = *area
	return l, nil
}

// ErrLacking: the TPM has no keys as the template wants them.
var ErrLacking = errors.New("the TPM lacks the algorithm, the curve or the size")

// lacking adds ErrLacking to the error of a command that makes a key, where the
// return code says so. Of the command's sessions, whose errors have a class
// already, the same codes say something else.
func lacking(err error) error {
	if _, classed := errors.AsType[*step.Error](err); classed {
		return err
	}
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCType, tpm2.TPMRCAsymmetric, tpm2.TPMRCCurve, tpm2.TPMRCKeySize,
		tpm2.TPMRCSymmetric, tpm2.TPMRCScheme, tpm2.TPMRCValue} {
		if errors.Is(err, rc) {
			return fmt.Errorf("%w: %w", ErrLacking, err)
		}
	}
	return err
}

// Parent is a key that others are made under.
type Parent struct {
	*Key
	// Endorsement is true for an EK, whose use the endorsement hierarchy
	// authorises; an SRK has an empty authorisation value.
	Endorsement bool
}

func (t *TPM) parent(p Parent) (tpm2.AuthHandle, error) {
	h := tpm2.AuthHandle{Handle: p.Handle, Name: tpm2.TPM2BName{Buffer: p.Name}, Auth: tpm2.PasswordAuth(nil)}
	if p.Endorsement {
		policy, err := t.endorsementPolicy(p.Public)
		if err != nil {
			return h, err
		}
		h.Auth = policy
	}
	return h, nil
}

// Sensitive is what only the TPM may know of a new object.
type Sensitive struct {
	Auth []byte // authorisation value; nil: none
	Data []byte // of a sealed object
}

// CreateChild makes a key under a parent and leaves it loaded. Nothing of it is kept in the TPM yet: the caller writes the blob to
// disk before it makes the key persistent.
func (t *TPM) CreateChild(parent Parent, template tpm2.TPMTPublic, secret Sensitive) (*Loaded, Blob, error) {
	if secret.Auth != nil {
		if err := t.hidden(); err != nil {
			return nil, Blob{}, err
		}
	}
	sensitive := tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: secret.Auth}}}
	auth, err := t.parent(parent)
	if err != nil {
		return nil, Blob{}, err
	}
	rsp, err := protected(t, tpm2.CreateLoaded{
		ParentHandle: auth,
		InSensitive:  sensitive,
		InPublic:     tpm2.New2BTemplate(&template),
	})
	if errors.Is(err, tpm2.TPMRCCommandCode) {
		return t.createAndLoad(parent, template, sensitive)
	}
	if err != nil {
		return nil, Blob{}, fail(lacking(err), "create a key under %#x", uint32(parent.Handle))
	}
	l, err := t.loaded(rsp.ObjectHandle, rsp.Name, rsp.OutPublic)
	if err != nil {
		return nil, Blob{}, err
	}
	return l, Blob{Public: tpm2.Marshal(rsp.OutPublic), Private: tpm2.Marshal(rsp.OutPrivate)}, nil
}

// createAndLoad is CreateChild on a TPM of a revision before 1.38, which has
// no TPM2_CreateLoaded.
func (t *TPM) createAndLoad(parent Parent, template tpm2.TPMTPublic, sensitive tpm2.TPM2BSensitiveCreate) (*Loaded, Blob, error) {
	blob, err := t.create(parent, template, sensitive)
	if err != nil {
		return nil, Blob{}, err
	}
	l, err := t.Load(parent, blob)
	if err != nil {
		return nil, Blob{}, err
	}
	return l, blob, nil
}

func (t *TPM) create(parent Parent, template tpm2.TPMTPublic, sensitive tpm2.TPM2BSensitiveCreate) (Blob, error) {
	auth, err := t.parent(parent)
	if err != nil {
		return Blob{}, err
	}
	rsp, err := protected(t, tpm2.Create{ParentHandle: auth, InSensitive: sensitive, InPublic: tpm2.New2B(template)})
	if err != nil {
		return Blob{}, fail(lacking(err), "create an object under %#x", uint32(parent.Handle))
	}
	return Blob{Public: tpm2.Marshal(rsp.OutPublic), Private: tpm2.Marshal(rsp.OutPrivate)}, nil
}

// Load loads a blob under its parent. A blob of another TPM, or of this one
// before its hierarchy was cleared, fails with TPM_RC_INTEGRITY.
func (t *TPM) Load(parent Parent, blob Blob) (*Loaded, error) {
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](blob.Public)
	if err != nil {
		return nil, step.Fail(step.Refused, "cannot read the public part of a kept key: %w", err)
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](blob.Private)
	if err != nil {
		return nil, step.Fail(step.Refused, "cannot read the private part of a kept key: %w", err)
	}
	auth, err := t.parent(parent)
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.Load{ParentHandle: auth, InPrivate: *private, InPublic: *public}.Execute(t.transport)
	if err != nil {
		return nil, fail(err, "load a kept key under %#x", uint32(parent.Handle))
	}
	return t.loaded(rsp.ObjectHandle, rsp.Name, *public)
}

// Persist copies a loaded key to a persistent handle; the loaded one is still
// to be flushed.
func (t *TPM) Persist(l *Loaded, handle tpm2.TPMHandle) error {
	if t.salt == nil && StorageKey(l.Public) {
		// The EK, which will be the key to salt to, hides the owner's proof.
		t.salt = &salt{l.Handle, l.Public}
		defer func() { t.salt = nil }()
	}
	_, err := tpm2.EvictControl{
		Auth:             t.hierarchy(tpm2.TPMRHOwner),
		ObjectHandle:     &tpm2.NamedHandle{Handle: l.Handle, Name: tpm2.TPM2BName{Buffer: l.Name}},
		PersistentHandle: handle,
	}.Execute(t.transport)
	if err != nil {
		return failBy(tpm2.TPMRHOwner, err, "make the key persistent at %#x", uint32(handle))
	}
	t.made[handle] = l.Name
	return nil
}

// Evict removes the key from its persistent handle.
func (t *TPM) Evict(k *Key) error {
	_, err := tpm2.EvictControl{
		Auth:             t.hierarchy(tpm2.TPMRHOwner),
		ObjectHandle:     &tpm2.NamedHandle{Handle: k.Handle, Name: tpm2.TPM2BName{Buffer: k.Name}},
		PersistentHandle: k.Handle,
	}.Execute(t.transport)
	if err != nil {
		return failBy(tpm2.TPMRHOwner, err, "remove the key at %#x", uint32(k.Handle))
	}
	delete(t.made, k.Handle)
	return nil
}

// Seal makes a sealed object under a parent and returns its blob.
func (t *TPM) Seal(parent Parent, template tpm2.TPMTPublic, secret Sensitive) (Blob, error) {
	if err := t.hidden(); err != nil {
		return Blob{}, err
	}
	return t.create(parent, template, tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
		UserAuth: tpm2.TPM2BAuth{Buffer: secret.Auth},
		Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret.Data}),
	}})
}

// Unseal returns the data of a sealed object. A wrong value is tried once: it
// may count towards the TPM's lockout.
func (t *TPM) Unseal(parent Parent, blob Blob, auth []byte) (data []byte, err error) {
	if err := t.hidden(); err != nil {
		return nil, err
	}
	l, err := t.Load(parent, blob)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Flush()) }()
	session := tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, append(t.encrypted(hideAnswer), tpm2.Auth(auth))...)
	rsp, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: l.Handle, Name: tpm2.TPM2BName{Buffer: l.Name}, Auth: session}}.Execute(t.transport)
	if err != nil {
		return nil, fail(err, "unseal an object under %#x", uint32(parent.Handle))
	}
	return rsp.OutData.Buffer, nil
}
