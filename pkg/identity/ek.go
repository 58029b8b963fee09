package identity

import (
	"encoding/json"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// EK is the endorsement key that sessions are salted to: what tpm2cloud-idevid
// has found out and tpm2cloud-ldevid relies on.
type EK struct {
	Handle   uint32 `json:"handle"`
	Public   []byte `json:"public"`   // TPMT_PUBLIC
	Verified bool   `json:"verified"` // its certificate leads to a vendor that is trusted
}

// ReadEK reads the record; the error is fs.ErrNotExist where there is none.
func ReadEK(dir *store.Dir) (*EK, error) {
	data, err := dir.Read(FileEK)
	if err != nil {
		return nil, err
	}
	var e EK
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, step.Fail(step.Refused, "cannot use %s: %w", dir.Path(FileEK), err)
	}
	return &e, nil
}

func (e EK) bytes() []byte {
	data, err := json.Marshal(e)
	if err != nil {
		panic(err) // numbers and bytes always marshal
	}
	return append(data, '\n')
}

// Save writes the record.
func (e EK) Save(dir *store.Dir) error { return dir.Write(FileEK, e.bytes(), ModePublic) }

// SavedIn says whether the record is on disk as it is.
func (e EK) SavedIn(dir *store.Dir) bool { return dir.Same(FileEK, e.bytes(), ModePublic) }
