package tpm

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// State is how a TPM stands.
type State struct {
	LockoutCounter, LockoutMax int
	LockoutAuthSet             bool // somebody set the lockout authorisation
	ClearDisabled              bool // TPM2_Clear is refused
	PlatformEnabled            bool // the platform hierarchy can be used
	// RoomForKeys is how many persistent keys fit into what is left of the
	// TPM's memory, at least.
	RoomForKeys int
}

// The bits of TPMA_PERMANENT and TPMA_STARTUP_CLEAR (Part 2, clauses 8.6, 8.7).
const (
	permanentLockoutAuthSet = 1 << 2
	permanentDisableClear   = 1 << 8
	startupPhEnable         = 1 << 0
)

// State reads how the TPM stands.
func (t *TPM) State() (State, error) {
	var s State
	seen := 0
	err := t.properties(tpm2.TPMPTPermanent, func(property tpm2.TPMPT, v uint32) {
		switch property {
		case tpm2.TPMPTHRPersistentAvail:
			s.RoomForKeys = int(v)
		case tpm2.TPMPTLockoutCounter:
			s.LockoutCounter = int(v)
		case tpm2.TPMPTMaxAuthFail:
			s.LockoutMax = int(v)
		case tpm2.TPMPTPermanent:
			s.LockoutAuthSet = v&permanentLockoutAuthSet != 0
			s.ClearDisabled = v&permanentDisableClear != 0
			seen++
		case tpm2.TPMPTStartupClear:
			s.PlatformEnabled = v&startupPhEnable != 0
			seen++
		}
	})
	if err == nil && seen < 2 {
		err = step.Fail(step.Refused, "cannot read the state of the TPM: it does not tell it")
	}
	return s, err
}

// Make is who made a TPM, as it says itself.
type Make struct {
	Vendor, Model string // as the TPM spells them: "IFX", "SLB9670"
	Firmware      string // four numbers, as vendors write it
}

// Make reads who made the TPM.
func (t *TPM) Make() (Make, error) {
	var m Make
	var model []byte
	var firmware [2]uint32
	err := t.properties(tpm2.TPMPTManufacturer, func(property tpm2.TPMPT, v uint32) {
		switch property {
		case tpm2.TPMPTManufacturer:
			m.Vendor = letters(binary.BigEndian.AppendUint32(nil, v))
		case tpm2.TPMPTVendorString1, tpm2.TPMPTVendorString2, tpm2.TPMPTVendorString3, tpm2.TPMPTVendorString4:
			model = binary.BigEndian.AppendUint32(model, v)
		case tpm2.TPMPTFirmwareVersion1:
			firmware[0] = v
		case tpm2.TPMPTFirmwareVersion2:
			firmware[1] = v
		}
	})
	m.Model = letters(model)
	m.Firmware = fmt.Sprintf("%d.%d.%d.%d", firmware[0]>>16, firmware[0]&0xffff, firmware[1]>>16, firmware[1]&0xffff)
	if err == nil && m.Vendor == "" {
		err = step.Fail(step.Refused, "cannot read who made the TPM: it does not tell it")
	}
	return m, err
}

// Resets is how often the TPM was reset; the platform hierarchy is open after
// each reset, whether the board booted or not.
func (t *TPM) Resets() (uint32, error) {
	rsp, err := tpm2.ReadClock{}.Execute(t.transport)
	if err != nil {
		return 0, fail(err, "read how often the TPM was reset")
	}
	return rsp.CurrentTime.ClockInfo.ResetCount, nil
}

// letters is a text of a TPM, which fills it up with zeros or blanks.
func letters(b []byte) string {
	printable := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string(b))
	return strings.TrimSpace(printable)
}

// propertyGroup is the number of properties in a group (PT_GROUP, Part 2, clause
// 6.13).
const propertyGroup = 0x100

// properties reads a group of properties from its first one on, with one command
// on most TPMs.
func (t *TPM) properties(from tpm2.TPMPT, set func(tpm2.TPMPT, uint32)) error {
	next, end := uint32(from), uint32(from)+propertyGroup
	for {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: next, PropertyCount: 127}.Execute(t.transport)
		if err != nil {
			return fail(err, "read the properties of the TPM")
		}
		list, err := rsp.CapabilityData.Data.TPMProperties()
		if err != nil {
			return step.Fail(step.Refused, "cannot read the properties of the TPM: %w", err)
		}
		for _, p := range list.TPMProperty {
			if uint32(p.Property) < next {
				return step.Fail(step.Refused, "cannot read the properties of the TPM: it gave %#x where %#x or a later one was asked for", uint32(p.Property), next)
			}
			if uint32(p.Property) >= end {
				return nil // of the next group
			}
			set(p.Property, p.Value)
			next = uint32(p.Property) + 1
		}
		if !rsp.MoreData || len(list.TPMProperty) == 0 || next == end {
			return nil
		}
	}
}

// mostIndices is more than the memory of any TPM has room for.
const mostIndices = 1024

// Indices lists the NV indices that are defined.
func (t *TPM) Indices() ([]tpm2.TPMHandle, error) {
	return t.handles(tpm2.TPMHTNVIndex, "NV indices")
}

// Persistent lists the handles of the keys that outlast a reset.
func (t *TPM) Persistent() ([]tpm2.TPMHandle, error) {
	return t.handles(tpm2.TPMHTPersistent, "persistent keys")
}

// handles lists those of a type.
func (t *TPM) handles(kind tpm2.TPMHT, what string) ([]tpm2.TPMHandle, error) {
	var all []tpm2.TPMHandle
	next := uint32(kind) << 24
	for {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: next, PropertyCount: 254}.Execute(t.transport)
		if err != nil {
			return nil, fail(err, "list the "+what)
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			return nil, step.Fail(step.Refused, "cannot list the %s: %w", what, err)
		}
		for _, h := range list.Handle {
			// One that does not get on could be asked for ever.
			if uint32(h) < next || len(all) == mostIndices {
				return nil, step.Fail(step.Refused, "cannot list the NV indices: the TPM gave %#x as number %d where %#x or a later one was asked for, and has %d at most",
					uint32(h), len(all)+1, next, mostIndices)
			}
			all = append(all, h)
			next = uint32(h) + 1
		}
		if !rsp.MoreData || len(list.Handle) == 0 {
			return all, nil
		}
	}
}
