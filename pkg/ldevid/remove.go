package ldevid

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/reset"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
	"github.com/tpm2cloud/tpm2cloud/pkg/token"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// The owner's identity, taken away again, from what others use to what it is
// known by. Each step is present when its object is gone; what is somebody
// else's is kept, and said to be.

// Removal are the steps.
func (p *Program) Removal() []reset.Step {
	return []reset.Step{removeKey{p}, removeToken{p}, removeSRK{p}, removeFiles{p}}
}

// saltIfKnown hides what authorises the removal from a listener on the bus. A
// reset that goes on may find the record of the EK gone.
func (p *Program) saltIfKnown() error {
	err := p.salt()
	if errors.Is(err, fs.ErrNotExist) || step.ClassOf(err) == step.Refused {
		return nil
	}
	return err
}

type removeKey struct{ *Program }

func (removeKey) Name() string { return "ldevid-key" }

func (s removeKey) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{State: step.Present, Object: fmt.Sprintf("%#x", uint32(tpm.HandleLDevID)), Detail: "nothing is there"}
	key, err := s.tpm.ReadPublic(tpm.HandleLDevID)
	if errors.Is(err, tpm.ErrNotFound) {
		return obs, nil
	}
	if err != nil {
		return obs, err
	}
	own, err := s.own(key)
	if err != nil {
		return obs, err
	}
	if !own {
		obs.Detail = "no LDevID"
		obs.Warnings = []string{"kept: the key at " + obs.Object + ", which is no LDevID of this TPM"}
		return obs, nil
	}
	s.key = key
	obs.State, obs.Detail = step.Partial, "the LDevID key, for good"
	return obs, nil
}

// own says whether a key is an LDevID: by its parent, or by the token that has
// it, where the parent is gone.
func (p *Program) own(key *tpm.Key) (bool, error) {
	srk, err := p.tpm.ReadPublic(tpm.HandleSRK)
	if err == nil {
		return ours(key, srk), nil
	}
	if !errors.Is(err, tpm.ErrNotFound) {
		return false, err
	}
	where, err := p.linkedElsewhere(key)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, token.ErrUnclean) || errors.Is(err, token.ErrCorrupt) {
		return false, nil
	}
	return where != "" && identity.Algorithm(key) != "", err
}

func (s removeKey) Remove(context.Context) error {
	if err := s.saltIfKnown(); err != nil {
		return err
	}
	return s.tpm.Evict(s.key)
}

// removeToken removes the token, and the store where it was the only one in it.
type removeToken struct{ *Program }

func (removeToken) Name() string { return "token" }

func (s removeToken) Observe(context.Context) (step.Observation, error) {
	label := s.cfg.LDevID.Token.Label
	obs := step.Observation{State: step.Present, Object: fmt.Sprintf("token %q in %s", label, s.shelf.Name()), Detail: "nothing is there"}
	labels, err := s.labels()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return obs, nil
	case errors.Is(err, token.ErrUnclean):
		obs.State, obs.Detail = step.Partial, "left unclean by an interruption"
		return obs, nil
	case err != nil && !errors.Is(err, token.ErrCorrupt):
		return obs, step.As(step.Refused, "", err)
	}
	damaged := err != nil
	noted, err := s.noted()
	if err != nil {
		return obs, err
	}
	var others []string
	there := len(labels) == 0 // a store that the library had not finished, or a damaged one
	for _, l := range labels {
		if l == label {
			there = true
		} else {
			others = append(others, fmt.Sprintf("%q", l))
		}
	}
	switch {
	case damaged && noted:
		obs.State, obs.Detail = step.Partial, "damaged: what is in it could not be read, and goes with it"
	case there && noted:
		obs.State, obs.Detail = step.Partial, "with all keys in it"
	case there:
		obs.Detail = "somebody else's"
		obs.Warnings = append(obs.Warnings, fmt.Sprintf("kept: %s, of which nothing says that it was made here", obs.Object))
	}
	if len(others) > 0 {
		obs.Warnings = append(obs.Warnings, fmt.Sprintf("kept: the tokens %s in %s", strings.Join(others, ", "), s.shelf.Name()))
	}
	return obs, nil
}

func (p *Program) labels() ([]string, error) {
	st, err := token.OpenStore(p.shelf.Name(), token.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	return st.Labels()
}

func (s removeToken) Remove(context.Context) error {
	var labels []string
	err := token.Recover(s.shelf.Name())
	if err == nil {
		labels, err = s.labels()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil && !errors.Is(err, token.ErrCorrupt) {
		return step.As(step.Refused, "", err)
	}
	if noted, err := s.noted(); err != nil || !noted {
		return err // looked at anew, now that the store can be read
	}
	// Nobody can use a damaged store any more, whoever has a token in it.
	if len(labels) == 0 || len(labels) == 1 && labels[0] == s.cfg.LDevID.Token.Label {
		return token.RemoveStore(s.shelf.Name())
	}
	st, err := token.OpenStore(s.shelf.Name(), token.ReadWrite)
	if err != nil {
		return err
	}
	defer st.Close()
	return st.RemoveToken(s.cfg.LDevID.Token.Label)
}

// removeSRK removes the storage root key where the note says that it was made
// here. A key that is adopted is somebody's, and one of an older version of this
// program, which kept no note, may be.
type removeSRK struct{ *Program }

func (removeSRK) Name() string { return "srk" }

// madeSRK is the note: the name of the key that was made.
type madeSRK struct {
	Name string `json:"name"` // hexadecimal
}

func (p *Program) noteSRK(name []byte) error {
	data, err := json.Marshal(madeSRK{hex.EncodeToString(name)})
	if err != nil {
		return err
	}
	return p.files.Write(identity.FileSRK, append(data, '\n'), identity.ModePublic)
}

func (p *Program) ownSRK(key *tpm.Key) bool {
	data, err := p.files.Read(identity.FileSRK)
	if err != nil {
		return false
	}
	var made madeSRK
	return json.Unmarshal(data, &made) == nil && made.Name == hex.EncodeToString(key.Name)
}

func (s removeSRK) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{State: step.Present, Object: fmt.Sprintf("%#x", uint32(tpm.HandleSRK)), Detail: "nothing is there"}
	key, err := s.tpm.ReadPublic(tpm.HandleSRK)
	if errors.Is(err, tpm.ErrNotFound) {
		return obs, nil
	}
	if err != nil {
		return obs, err
	}
	if !s.ownSRK(key) {
		obs.Detail = "not made here"
		obs.Warnings = []string{"kept: the storage root key at " + obs.Object + ", which others may use"}
		return obs, nil
	}
	s.srk = key
	obs.State, obs.Detail = step.Partial, "the storage root key, which was made here; the same can be made again"
	return obs, nil
}

func (s removeSRK) Remove(context.Context) error {
	if err := s.saltIfKnown(); err != nil {
		return err
	}
	return s.tpm.Evict(s.srk)
}

// removeFiles removes certificates, PINs and notes.
type removeFiles struct{ *Program }

func (removeFiles) Name() string { return "ldevid-files" }

func (p *Program) directories() []*store.Dir { return []*store.Dir{p.pins, p.files} }

func (s removeFiles) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{State: step.Present, Object: s.files.Name(), Detail: "nothing is there"}
	var there []string
	for _, dir := range s.directories() {
		if _, err := os.Lstat(dir.Name()); err == nil {
			there = append(there, dir.Name())
		} else if !errors.Is(err, fs.ErrNotExist) {
			return obs, err
		}
	}
	if len(there) > 0 {
		obs.State, obs.Object, obs.Detail = step.Partial, strings.Join(there, ", "), "with all that is in there"
	}
	return obs, nil
}

func (s removeFiles) Remove(context.Context) error {
	for _, dir := range s.directories() {
		if err := dir.RemoveAll(); err != nil {
			return err
		}
	}
	return nil
}
