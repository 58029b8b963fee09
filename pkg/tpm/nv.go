package tpm

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Index is the public side of an NV index.
type Index struct {
	tpm2.TPMSNVPublic
	name tpm2.TPM2BName
}

// named is the index in a command.
func (i *Index) named() tpm2.NamedHandle {
	return tpm2.NamedHandle{Handle: i.NVIndex, Name: i.name}
}

// Index reads the public side of an index; the error is ErrNotFound where it
// is not defined.
func (t *TPM) Index(index tpm2.TPMHandle) (*Index, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t.transport)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, fmt.Errorf("cannot read the NV index %#x: %w", uint32(index), ErrNotFound)
	}
	if err != nil {
		return nil, fail(err, "read the NV index %#x", uint32(index))
	}
	public, err := rsp.NVPublic.Contents()
	if err != nil {
		return nil, step.Fail(step.Refused, "cannot read the NV index %#x: %w", uint32(index), err)
	}
	// As with keys. (A name of an algorithm that is not known here, as SM3, is not
	// compared: what an index holds is never believed for its name.)
	name, err := tpm2.NVName(public)
	if public.NVIndex != index || err == nil && !bytes.Equal(name.Buffer, rsp.NVName.Buffer) {
		return nil, step.Fail(step.Refused, "cannot trust the NV index %#x: its name %x is not that of its public area", uint32(index), rsp.NVName.Buffer)
	}
	return &Index{*public, rsp.NVName}, nil
}

// reader is by whose authorisation an index is read: its own, which is empty,
// then the owner's, then the platform's.
func (t *TPM) reader(i *Index) (tpm2.AuthHandle, error) {
	index := tpm2.AuthHandle{Handle: i.NVIndex, Name: i.name, Auth: tpm2.PasswordAuth(nil)}
	switch a := i.Attributes; {
	case a.AuthRead:
		return index, nil
	case a.OwnerRead:
		return t.hierarchy(tpm2.TPMRHOwner), nil
	case a.PPRead:
		return t.hierarchy(tpm2.TPMRHPlatform), nil
	}
	return index, step.Fail(step.Refused, "cannot read the NV index %#x: its attributes let nobody read it without a policy", uint32(i.NVIndex))
}

// largestPiece is what is read or written at once where the TPM takes it, in
// bytes. A TPM whose buffer is smaller (TPM_PT_NV_BUFFER_MAX; the PC Client
// Profile wants 512) says so, and gets half as much: on most that saves asking.
const largestPiece = 1024

// smaller says whether an error is a TPM's refusal of a piece, and halves it.
func smaller(err error, piece *int) bool {
	if *piece <= 64 || !errors.Is(err, tpm2.TPMRCValue) && !errors.Is(err, tpm2.TPMRCSize) {
		return false
	}
	*piece /= 2
	return true
}

// Read reads an index whole.
func (t *TPM) Read(i *Index) ([]byte, error) {
	data := make([]byte, 0, i.DataSize)
	for piece := largestPiece; len(data) < int(i.DataSize); {
		by, err := t.reader(i)
		if err != nil {
			return nil, err
		}
		size := min(piece, int(i.DataSize)-len(data))
		rsp, err := tpm2.NVRead{
			AuthHandle: by,
			NVIndex:    i.named(),
			Size:       uint16(size),
			Offset:     uint16(len(data)),
		}.Execute(t.transport)
		if smaller(err, &piece) {
			continue
		}
		if err != nil {
			return nil, fail(err, "read the NV index %#x", uint32(i.NVIndex))
		}
		if len(rsp.Data.Buffer) == 0 || len(rsp.Data.Buffer) > size {
			return nil, step.Fail(step.Refused, "cannot read the NV index %#x: the TPM gave %d bytes at offset %d, and was asked for %d", uint32(i.NVIndex), len(rsp.Data.Buffer), len(data), size)
		}
		data = append(data, rsp.Data.Buffer...)
	}
	return data, nil
}

// Define defines an index in the hierarchy given.
func (t *TPM) Define(hierarchy, index tpm2.TPMHandle, attributes tpm2.TPMANV, size int) error {
	if size > math.MaxUint16 { // as the TPM says of a size that it can be told
		return failBy(hierarchy, tpm2.TPMRCSize, "define the NV index %#x of %d bytes", uint32(index), size)
	}
	_, err := tpm2.NVDefineSpace{
		AuthHandle: t.hierarchy(hierarchy),
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, Attributes: attributes, DataSize: uint16(size)}),
	}.Execute(t.transport)
	if err != nil {
		return failBy(hierarchy, err, "define the NV index %#x of %d bytes", uint32(index), size)
	}
	return nil
}

// Undefine removes an index.
func (t *TPM) Undefine(hierarchy tpm2.TPMHandle, i *Index) error {
	_, err := tpm2.NVUndefineSpace{AuthHandle: t.hierarchy(hierarchy), NVIndex: i.named()}.Execute(t.transport)
	if err != nil {
		return failBy(hierarchy, err, "remove the NV index %#x", uint32(i.NVIndex))
	}
	return nil
}

// Write writes an index whole, in as many pieces as the TPM wants. A power cut
// leaves some of them: the caller reads the index back.
func (t *TPM) Write(hierarchy tpm2.TPMHandle, i *Index, data []byte) error {
	for done, piece := 0, largestPiece; done < len(data); {
		n := min(piece, len(data)-done)
		_, err := tpm2.NVWrite{
			AuthHandle: t.hierarchy(hierarchy),
			NVIndex:    i.named(),
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data[done : done+n]},
			Offset:     uint16(done),
		}.Execute(t.transport)
		if smaller(err, &piece) {
			continue
		}
		if err != nil {
			return failBy(hierarchy, err, "write the NV index %#x", uint32(i.NVIndex))
		}
		done += n
		// The first write sets WRITTEN, and that changes the index's name.
		i.Attributes.Written = true
		name, err := tpm2.NVName(&i.TPMSNVPublic)
		if err != nil {
			return err
		}
		i.name = *name
	}
	return nil
}

// NewIndex is an index that was just defined, as Write wants it.
func NewIndex(index tpm2.TPMHandle, attributes tpm2.TPMANV, size int) (*Index, error) {
	public := tpm2.TPMSNVPublic{NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, Attributes: attributes, DataSize: uint16(size)}
	name, err := tpm2.NVName(&public)
	if err != nil {
		return nil, err
	}
	return &Index{public, *name}, nil
}

// Lock write-locks an index for good.
func (t *TPM) Lock(hierarchy tpm2.TPMHandle, i *Index) error {
	if _, err := (tpm2.NVWriteLock{AuthHandle: t.hierarchy(hierarchy), NVIndex: i.named()}).Execute(t.transport); err != nil {
		return failBy(hierarchy, err, "lock the NV index %#x", uint32(i.NVIndex))
	}
	return nil
}

// PlatformOpen says whether the platform hierarchy can be used with the empty
// value: it reads one byte of an index with it. The platform's authorisation
// is not subject to the dictionary attack lockout, so asking costs nothing.
func (t *TPM) PlatformOpen(i *Index) (bool, error) {
	_, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Name: tpm2.HandleName(tpm2.TPMRHPlatform), Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    i.named(), Size: 1,
	}.Execute(t.transport)
	switch {
	case err == nil, errors.Is(err, tpm2.TPMRCNVAuthorization), errors.Is(err, tpm2.TPMRCNVUninitialized):
		// The TPM looks at the index only after the authorisation was right.
		return true, nil
	case Denied(err), errors.Is(err, tpm2.TPMRCHierarchy):
		return false, nil
	}
	return false, fail(err, "find out whether the platform hierarchy is open")
}
