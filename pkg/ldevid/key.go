package ldevid

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/token"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// ldevidKey makes the LDevID key and links it into the token. Its
// authorisation value is random and known to the token alone; so the two rows,
// which hold the key's blobs and the wrapped value, are in the store before
// the key is persistent. Rows without a key are half a job; a key of ours
// without rows is an orphan, whose value died with the disk that knew it.
type ldevidKey struct{ *Program }

func (ldevidKey) Name() string { return "ldevid-key" }

func (s ldevidKey) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{Object: fmt.Sprintf("%#x", uint32(tpm.HandleLDevID))}
	if s.token == nil {
		return step.WaitsFor(obs.Object, tokenStep{}.Name()), nil
	}
	pair, why, err := s.readPair()
	if err != nil {
		return obs, s.damaged(err)
	}
	if why != "" {
		obs.Object = fmt.Sprintf("key %q of token %q", s.cfg.LDevID.Token.Key, s.token.Label)
		obs.State, obs.Detail = step.Conflict, why
		obs.Hint = "choose another [ldevid.token] key, label or store"
		return obs, nil
	}
	key, err := s.tpm.ReadPublic(tpm.HandleLDevID)
	if err != nil && !errors.Is(err, tpm.ErrNotFound) {
		return obs, err
	}
	s.pair, s.key = pair, key
	if s.earlier, err = s.readLabel(s.cfg.LDevID.Token.Key + suffixEarlier); err != nil {
		return obs, s.damaged(err)
	}
	linked := ""
	if key != nil && pair == nil {
		if linked, err = s.linkedElsewhere(key); err != nil {
			return obs, s.damaged(err)
		}
	}
	switch {
	case key == nil && pair == nil:
		obs.State = step.Missing
	case key == nil:
		obs.State, obs.Detail = step.Partial, "the key is in the token but not at its handle"
	case s.replaced(key):
		obs.State, obs.Detail = step.Partial, "a renewal has replaced the key, and the earlier one is still there"
	case pair != nil && bytes.Equal(pairName(pair), key.Name) && s.earlier != nil:
		obs.State, obs.Detail = step.Partial, "a renewal has replaced the key, and the earlier one is still in the token"
	case pair != nil && bytes.Equal(pairName(pair), key.Name):
		algorithm := identity.Algorithm(key)
		obs.State, obs.Detail = step.Present, string(algorithm)
		if algorithm != s.cfg.LDevID.Key {
			obs.Warnings = append(obs.Warnings, fmt.Sprintf("the LDevID was made as %s and stays so; the configuration says %s", algorithm, s.cfg.LDevID.Key))
		}
	case pair != nil:
		obs.State, obs.Detail = step.Conflict, fmt.Sprintf("the key there is not the key %q of token %q", pair.Label, s.token.Label)
		obs.Hint = "one of the two is not of this device's making; choose another [ldevid.token] key or label, or remove the one that nobody needs"
	case !ours(key, s.srk):
		obs.State, obs.Detail = step.Conflict, "the key there is no LDevID under this TPM's SRK"
		obs.Hint = fmt.Sprintf("if nothing needs that key, remove it: tpm2_evictcontrol -C o -c %#x", uint32(tpm.HandleLDevID))
	case linked != "":
		obs.State, obs.Detail = step.Conflict, fmt.Sprintf("the LDevID is there as %s", linked)
		obs.Hint = "[ldevid.token] label and key were changed; set them back, or remove that key from its token"
	case s.cfg.LDevID.OnOrphan == config.OrphanRefuse:
		obs.State, obs.Detail = step.Conflict, "an earlier LDevID is there, and the token that could use it is lost"
		obs.Hint = "[ldevid] on_orphan = \"replace\" has it replaced"
	default:
		obs.State, obs.Detail = step.Orphan, "an earlier LDevID, whose token is lost"
	}
	return obs, nil
}

// readPair reads the rows under the LDevID's label. A second result says why
// they can't be ours.
func (p *Program) readPair() (*token.Key, string, error) {
	st, err := token.OpenStore(p.shelf.Name(), token.ReadOnly)
	if err != nil {
		return nil, "", err
	}
	defer st.Close()
	keys, err := st.Keys(p.token.ID, p.cfg.LDevID.Token.Key)
	if err != nil {
		return nil, "", err
	}
	switch {
	case len(keys) == 0:
		return nil, "", nil
	case len(keys) > 1:
		return nil, fmt.Sprintf("there are %d keys of that label", len(keys)), nil
	case keys[0].Rows != token.BothRows:
		return nil, "only half of the pair is there", nil
	case !linkable(&keys[0]):
		return nil, "it is not made from the LDevID's template", nil
	}
	return &keys[0], "", nil
}

// readLabel reads the pair under another label than the LDevID's; nil: there is
// none of our making.
func (p *Program) readLabel(label string) (*token.Key, error) {
	st, err := token.OpenStore(p.shelf.Name(), token.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	keys, err := st.Keys(p.token.ID, label)
	if err != nil || len(keys) != 1 || keys[0].Rows != token.BothRows || !linkable(&keys[0]) {
		return nil, err
	}
	return &keys[0], nil
}

// linkedElsewhere names the token and label under which the store has a key, or
// nothing: a key that can still be used is no orphan.
func (p *Program) linkedElsewhere(key *tpm.Key) (string, error) {
	st, err := token.OpenStore(p.shelf.Name(), token.ReadOnly)
	if err != nil {
		return "", err
	}
	defer st.Close()
	labels, err := st.Labels()
	if err != nil {
		return "", err
	}
	for _, label := range labels {
		t, err := st.Token(label)
		if err != nil {
			return "", err
		}
		keys, err := st.Keys(t.ID, "")
		if err != nil {
			return "", err
		}
		for i := range keys {
			if public(&keys[i]) != nil && bytes.Equal(pairName(&keys[i]), key.Name) {
				return fmt.Sprintf("key %q of token %q", keys[i].Label, label), nil
			}
		}
	}
	return "", nil
}

// public is the public area in a key's rows, or nil.
func public(pair *token.Key) *tpm2.TPMTPublic {
	blob, err := tpm2.Unmarshal[tpm2.TPM2BPublic](pair.TPM2BPublic)
	if err != nil {
		return nil
	}
	area, err := blob.Contents()
	if err != nil {
		return nil
	}
	return area
}

// linkable says whether the rows are of a key that this step makes.
func linkable(pair *token.Key) bool {
	area := public(pair)
	return area != nil && identity.Algorithm(&tpm.Key{Public: *area}) != "" && pair.WrappedAuth != ""
}

func pairName(pair *token.Key) []byte {
	name, err := tpm2.ObjectName(public(pair))
	if err != nil {
		return nil
	}
	return name.Buffer
}

// ours says whether a key is an LDevID under the SRK.
func ours(key, srk *tpm.Key) bool {
	return identity.Algorithm(key) != "" && key.ChildOf(srk, tpm2.TPMRHOwner)
}

func (s ldevidKey) Act(_ context.Context, obs step.Observation) (err error) {
	var loaded *tpm.Loaded
	switch {
	case obs.State == step.Orphan, s.replaced(s.key):
		return s.tpm.Evict(s.key)
	case obs.State == step.Partial && s.key != nil:
		return s.forget(s.earlier.Label)
	case obs.State == step.Partial:
		loaded, err = s.tpm.Load(s.parent(), tpm.Blob{Public: s.pair.TPM2BPublic, Private: s.pair.TPM2BPrivate})
	default:
		loaded, err = s.create(s.cfg.LDevID.Token.Key)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, loaded.Flush()) }()
	return s.tpm.Persist(loaded, tpm.HandleLDevID)
}

// replaced says whether the key at the handle is the one that a renewal has
// replaced in the token.
func (p *Program) replaced(key *tpm.Key) bool {
	return key != nil && p.pair != nil && p.earlier != nil && bytes.Equal(pairName(p.earlier), key.Name)
}

// forget removes a key from the token.
func (p *Program) forget(label string) error {
	st, err := token.OpenStore(p.shelf.Name(), token.ReadWrite)
	if err != nil {
		return err
	}
	defer st.Close()
	return st.RemoveKey(p.token.ID, label)
}

// create makes the key under a label and writes its rows.
func (p *Program) create(label string) (_ *tpm.Loaded, err error) {
	// The library takes the authorisation value as text.
	auth := []byte(randomHex(16))
	loaded, blob, err := p.tpm.CreateChild(p.parent(), identity.Template(p.cfg.LDevID.Key), tpm.Sensitive{Auth: auth})
	if err != nil {
		return nil, fmt.Errorf("cannot make the LDevID key: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, loaded.Flush())
		}
	}()
	wrapped, err := token.WrapAuth(p.secret.wrappingKey, auth, rand.Reader)
	if err != nil {
		return nil, err
	}
	st, err := token.OpenStore(p.shelf.Name(), token.ReadWrite)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	id := make([]byte, 8)
	rand.Read(id)
	return loaded, st.AddKey(p.token.ID, token.Key{
		Label: label, ID: id,
		TPM2BPublic: blob.Public, TPM2BPrivate: blob.Private, WrappedAuth: wrapped,
	})
}
