// Package reset takes identities away: it has the steps done that the programs
// have for it, and keeps, from before the first to after the last, a note of
// what was asked for. A reset that was cut so is known as one: nothing is
// provisioned on what it has left, and the next reset goes on with it.
//
// The IDevID certificate of most devices is in an NV index that only the
// platform hierarchy can remove, and that is closed at each boot. For that part
// the note waits: the next boot's tpm2cloud-idevid finds it, removes the index
// before it closes the platform, then the key and the files, and last the note.
// As long as the index is there the key stays, so that an index which cannot be
// removed after all costs nothing.
//
// The note is reset.json in the state directory, of mode 0644. What a reset does
// not do is revoke: the note keeps the certificates that somebody must tell to
// their CAs, because a reset that goes on later finds them no more.
package reset

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// Scope is what is taken away.
type Scope string

const (
	// Owner is the owner's identity, and what was made with it.
	Owner Scope = "ldevid"
	// All is the manufacturer's as well.
	All Scope = "all"
)

// File is the note in the state directory.
const File = "reset.json"

const version = 1

// Note is what was asked for and is not done.
type Note struct {
	Version int       `json:"version"`
	Scope   Scope     `json:"scope"`
	Asked   time.Time `json:"asked"`
	// Resets is how often the TPM had been reset when it was asked for.
	Resets uint32 `json:"tpm_resets"`
	// AtBoot: what is left is for the next boot's tpm2cloud-idevid.
	AtBoot bool          `json:"at_boot"`
	Revoke []Certificate `json:"revoke"`
}

// Certificate is one that is valid still, although its key is gone.
type Certificate struct {
	What       string    `json:"what"` // whose: "LDevID"
	CommonName string    `json:"common_name"`
	Serial     string    `json:"serial"` // hexadecimal
	Issuer     string    `json:"issuer"`
	NotAfter   time.Time `json:"not_after"`
}

func (c Certificate) String() string {
	return fmt.Sprintf("%s %s: serial %s, by %s, until %s", c.What, c.CommonName, c.Serial, c.Issuer, c.NotAfter.Format(time.DateOnly))
}

// New is the note of a reset that is asked for now, of a TPM that was reset so
// often. It goes on from an earlier one, nil where there was none; of what that
// was to remove, kept is what stays in use after all, and must not be revoked.
func New(scope Scope, revoke, kept []Certificate, resets uint32, earlier *Note) *Note {
	n := &Note{Version: version, Scope: scope, Asked: time.Now().UTC().Truncate(time.Second), Resets: resets, Revoke: revoke}
	if earlier != nil {
		for _, c := range earlier.Revoke {
			if !slices.Contains(n.Revoke, c) && !slices.Contains(kept, c) {
				n.Revoke = append(n.Revoke, c)
			}
		}
	}
	return n
}

// Read reads the note, nil: no reset is under way.
func Read(state *store.Dir) (*Note, error) {
	data, err := state.Read(File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var n Note
	err = json.Unmarshal(data, &n)
	if err == nil && (n.Version != version || n.Scope != Owner && n.Scope != All) {
		err = fmt.Errorf("version %d, scope %q", n.Version, n.Scope)
	}
	if err != nil {
		return nil, step.As(step.Refused, "tpm2cloud reset --ldevid or --all begins anew", fmt.Errorf("cannot use the note of a reset %s: %w", state.Path(File), err))
	}
	return &n, nil
}

// Write keeps the note.
func (n *Note) Write(state *store.Dir) error {
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return state.Write(File, append(data, '\n'), 0o644)
}

// Allow is not nil where a reset keeps programs from provisioning. It is
// finishing: the program is the one that does what waits for a boot.
func Allow(state *store.Dir, finishing bool) error {
	n, err := Read(state)
	switch {
	case err != nil:
		return err
	case n == nil, n.AtBoot && finishing:
		return nil
	case n.AtBoot:
		return step.As(step.Refused, "boot again; tpm2cloud status shows how it goes on", errors.New("a reset of all identities waits for the next boot"))
	}
	return step.As(step.Refused, "tpm2cloud reset --yes goes on with it", fmt.Errorf("a reset was interrupted (%s, asked for at %s)", n.Scope, n.Asked.Format(time.RFC3339)))
}
