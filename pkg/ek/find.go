package ek

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// ReadIndex returns the whole content of an NV index.
//
// Its errors are of two kinds, and it must tell them apart. One that wraps [ErrUnreadable] is about
// this index for good, and the other slots still count. Any other error may be gone at the next try
// (a busy TPM, a lost connection) and ends [Find].
type ReadIndex func(index uint32) ([]byte, error)

// Entry is what one slot holds.
type Entry struct {
	Slot        Slot
	Blob        []byte       // the index's content as it was read
	Certificate *Certificate // nil if the blob couldn't be read or parsed

	// Err tells why the slot can't be used: a [MalformedError], a [SlotKeyError], or one that wraps
	// [ErrUnreadable].
	Err error
}

// Found is what a TPM holds.
type Found struct {
	Certificates []Entry             // the slots that were read, in the order of Slots; the last may be usable
	Chain        []*x509.Certificate // from NV, untrusted, leaf's issuer usually first
	ChainErr     error               // why the chain is incomplete, or nil; it need not matter, if anchors suffice
}

// Find reads the EK certificates, up to the first that can be used, and the certificate chain. defined are
// the NV indices that exist in the TPM; others are not read. What is wrong with one slot is kept in its [Entry] and does not hide
// another slot. A transient error of read is returned, with nothing found: to go on without the preferred
// certificate would let a moment's trouble decide which key becomes the parent of the device's identity.
func Find(defined []uint32, read ReadIndex) (*Found, error) {
	found := &Found{}
	for _, slot := range Slots() {
		if !slices.Contains(defined, slot.Certificate) {
			continue
		}
		blob, err := read(slot.Certificate)
		if err != nil && !errors.Is(err, ErrUnreadable) {
			return nil, fmt.Errorf("cannot read the EK certificate at 0x%08X: %w", slot.Certificate, err)
		}
		e := entry(slot, blob, err)
		found.Certificates = append(found.Certificates, e)
		if e.usable() {
			break // the others are no better, and a chip on a slow bus takes its time for each
		}
	}

	indices := slices.DeleteFunc(slices.Clone(defined), func(i uint32) bool { return i < ChainFirst || i > ChainLast })
	slices.Sort(indices)
	var blobs [][]byte
	size := 0
	for _, index := range slices.Compact(indices) {
		blob, err := read(index)
		if errors.Is(err, ErrUnreadable) {
			// The rest would begin in the middle of a certificate.
			found.ChainErr = fmt.Errorf("cannot read the EK certificate chain at 0x%08X: %w", index, err)
			break
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the EK certificate chain at 0x%08X: %w", index, err)
		}
		blobs = append(blobs, blob)
		if size += len(blob); size > maxChainSize {
			break // ParseChain says so; there's no use in reading on
		}
	}
	chain, err := ParseChain(blobs...)
	found.Chain = chain
	if found.ChainErr == nil {
		found.ChainErr = err
	}
	return found, nil
}

// entry makes the entry of a slot of what reading it returned.
func entry(slot Slot, blob []byte, err error) Entry {
	e := Entry{Slot: slot, Blob: blob}
	if err != nil {
		e.Err = fmt.Errorf("cannot read the EK certificate at 0x%08X: %w", slot.Certificate, err)
		return e
	}
	e.Certificate, err = Parse(blob)
	switch {
	case err != nil:
		e.Err = fmt.Errorf("cannot use what lies at 0x%08X, the slot for %s: %w", slot.Certificate, slot.Name, err)
	case e.Certificate.Kind != slot.Key:
		e.Err = &SlotKeyError{Slot: slot, Key: e.Certificate.Kind}
	}
	return e
}

// usable says whether the slot holds a certificate of a key that can be used.
func (e Entry) usable() bool { return e.Err == nil && e.Slot.Key.Supported() }

// Usable returns the entry that decides: the preferred one without error whose kind of key is supported.
// If there is none, the error is [ErrNotFound] (no slot holds anything), an [UnsupportedKeyError]
// (there are good certificates, for other keys), or what is wrong with each slot, joined.
func (f *Found) Usable() (*Entry, error) {
	var unsupported []KeyKind
	var errs []error
	for i, e := range f.Certificates {
		switch {
		case e.usable():
			return &f.Certificates[i], nil
		case e.Err != nil:
			errs = append(errs, e.Err)
		default:
			unsupported = append(unsupported, e.Slot.Key)
		}
	}
	if len(f.Certificates) == 0 {
		return nil, ErrNotFound
	}
	if len(unsupported) > 0 {
		errs = append(errs, &UnsupportedKeyError{Keys: unsupported})
	}
	return nil, errors.Join(errs...)
}
