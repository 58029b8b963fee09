package ldevid

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/identity"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/token"
)

// Renewal is what is wanted of a renewal.
type Renewal struct {
	// Now has the certificate renewed before its time.
	Now bool
	// NewKey has the LDevID key replaced as well.
	NewKey bool
}

// RenewalSteps renew the LDevID of a device that has one:
//
//	idevid, srk, token  as they were found at the last boot
//	next-key            the key that the next certificate is for: the same, or
//	                    a new one, in the token beside the one in use
//	renewal             a certificate by simplereenroll, which the one in use
//	                    entitles to; proven in a TLS handshake; then in its place
//	ldevid-key          a new key is at the handle, the earlier one nowhere
//
// Up to the proof the identity in use is untouched. A cut afterwards leaves what
// the steps of the program itself bring to its end, at the next boot.
func (p *Program) RenewalSteps(r Renewal) []step.Step {
	return []step.Step{
		existing{idevid{p}},
		existing{srk{p}},
		existing{tokenStep{p}},
		&nextKey{Program: p, wanted: r.NewKey},
		&renewal{Program: p, now: r.Now || r.NewKey},
		existing{ldevidKey{p}},
	}
}

// Due is when the LDevID certificate is to be renewed; the error is
// fs.ErrNotExist where there is none.
func (p *Program) Due() (time.Time, error) {
	chain, err := identity.ReadChain(p.files)
	if err != nil {
		return time.Time{}, err
	}
	return identity.Due(chain.Leaf), nil
}

// The labels of the keys beside the LDevID's while a renewal replaces it.
const (
	suffixNext    = "-next"
	suffixEarlier = "-earlier"
)

// existing is a step that a renewal takes for granted: it repairs, and makes
// nothing from the beginning.
type existing struct{ step.Step }

func (e existing) Act(ctx context.Context, obs step.Observation) error {
	if obs.State == step.Missing || obs.State == step.Orphan {
		return provisionFirst(fmt.Errorf("cannot renew the LDevID: %s is %s", e.Name(), obs.State))
	}
	return e.Step.Act(ctx, obs)
}

func provisionFirst(err error) error {
	return step.As(step.Refused, "run tpm2cloud-ldevid first: only what is there can be renewed", err)
}

// nextKey decides which key the next certificate is for. A new one that an
// earlier renewal has begun with is gone on with.
type nextKey struct {
	*Program
	wanted bool
}

func (nextKey) Name() string { return "next-key" }

func (s *nextKey) Observe(ctx context.Context) (step.Observation, error) {
	obs, err := ldevidKey{s.Program}.Observe(ctx)
	switch {
	case err != nil, obs.State == step.Conflict:
		return obs, err
	case s.pair == nil:
		return obs, provisionFirst(errors.New("cannot renew the LDevID: the token has no key of it"))
	}
	if s.coming, err = s.readLabel(s.cfg.LDevID.Token.Key + suffixNext); err != nil {
		return obs, err
	}
	obs = step.Observation{Object: fmt.Sprintf("key %q of token %q", s.pair.Label, s.token.Label)}
	switch {
	case s.coming != nil:
		obs.State, obs.Detail = step.Present, "a new key takes its place"
	case s.wanted && s.earlier == nil:
		obs.State = step.Missing
	case s.wanted:
		obs.State, obs.Detail = step.Partial, "an earlier renewal is not at its end"
	default:
		obs.State, obs.Detail = step.Present, "it stays"
	}
	return obs, nil
}

func (s *nextKey) Act(ctx context.Context, obs step.Observation) error {
	if obs.State == step.Partial {
		obs, err := ldevidKey{s.Program}.Observe(ctx)
		if err != nil {
			return err
		}
		return ldevidKey{s.Program}.Act(ctx, obs)
	}
	loaded, err := s.create(s.cfg.LDevID.Token.Key + suffixNext)
	if err != nil {
		return err
	}
	return loaded.Flush() // its rows are in the token: the handle is for later
}

// renewal gets the next certificate, proves it, and has it take over.
type renewal struct {
	*Program
	now  bool
	done bool // in this run
}

func (renewal) Name() string { return "renewal" }

func (s *renewal) Observe(context.Context) (step.Observation, error) {
	obs := step.Observation{Object: s.files.Path(identity.FileCertificate)}
	chain, err := identity.ReadChain(s.files)
	if errors.Is(err, fs.ErrNotExist) {
		return obs, provisionFirst(fmt.Errorf("cannot renew the LDevID: %w", err))
	}
	if err != nil {
		return obs, err
	}
	obs.Certificate = identity.Describe(chain.Leaf)
	now := s.clock()
	next, err := s.next(s.nextPublic())
	due := identity.Due(chain.Leaf)
	switch {
	case err != nil:
		return obs, err
	case next != nil:
		obs.State, obs.Detail = step.Partial, "the next certificate is there, and not proven yet"
	case s.coming != nil:
		obs.State, obs.Detail = step.Partial, "the next key has no certificate yet"
	case s.done:
		obs.State, obs.Detail = step.Present, "renewed; again from "+due.Format(time.DateOnly)
	case now.Time.After(chain.Leaf.NotAfter):
		obs.State, obs.Detail = step.Partial, "it has ended"
	case s.now || !now.Time.Before(due):
		obs.State, obs.Detail = step.Partial, "to be renewed since "+due.Format(time.RFC3339)
	default:
		obs.State, obs.Detail = step.Present, "to be renewed from "+due.Format(time.DateOnly)
	}
	return obs, nil
}

// nextPublic is the key that the next certificate is for.
func (p *Program) nextPublic() crypto.PublicKey {
	if p.coming != nil {
		return p.coming.Public
	}
	return p.pair.Public
}

// next is the certificate that is staged for a key, or nil. One that cannot be
// used is as good as none: the next order writes over it.
func (p *Program) next(public crypto.PublicKey) (*identity.Next, error) {
	next, err := identity.ReadNext(p.files)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		var order identity.Order
		if order, err = p.newOrder(public); err != nil {
			return nil, err
		}
		_, err = identity.Check(next.Chain, devid.Expect{
			Key: public, Subject: order.Subject, AnySubject: order.Enroll.AnySubject,
			ClientAuth: true, Roots: next.CA, At: p.clock().Time,
		})
		if identity.Undecided(err, p.clock()) {
			err = nil // the server that it is proven to judges it
		}
	}
	if err != nil {
		return nil, nil
	}
	return next, nil
}

func (s *renewal) Act(ctx context.Context, obs step.Observation) error {
	chain, err := identity.ReadChain(s.files)
	if err != nil {
		return err
	}
	next, err := s.next(s.nextPublic())
	switch {
	case err != nil:
		return err
	case next != nil:
		err = s.through(func(_, coming crypto.Signer) error { return s.prove(ctx, next, coming) })
		if err == nil {
			err = s.takeOver(next)
		}
	case s.clock().Time.After(chain.Leaf.NotAfter):
		// It entitles to nothing any more; the way of the first one is open.
		err = ldevidCertificate{s.Program}.Act(ctx, obs)
	default:
		return s.through(func(key, coming crypto.Signer) error { return s.reenrol(ctx, chain, key, coming) })
	}
	s.done = err == nil
	return err
}

// reenrol asks for the next certificate with the one in use.
func (p *Program) reenrol(ctx context.Context, chain *devid.Chain, key, coming crypto.Signer) error {
	order, err := p.newOrder(coming.Public())
	if err != nil {
		return err
	}
	if order.Enroll.Method != config.MethodCA {
		order.Enroll.Method = config.MethodMTLS
	}
	order.Identity = identity.TLS(chain, key)
	order.Sign = func() ([]byte, error) { return devid.CSR(coming, order.Subject) }
	p.order = order
	return identity.Renew(ctx, order)
}

// Postpone keeps when the CA is to be asked again.
func (s *renewal) Postpone(until time.Time, failures int) error {
	return s.order.Postpone(until, failures)
}

func (p *Program) prove(ctx context.Context, next *identity.Next, coming crypto.Signer) error {
	order, err := p.newOrder(coming.Public())
	if err != nil {
		return err
	}
	order.Identity = identity.TLS(next.Chain, coming)
	p.order = order
	return next.Prove(ctx, order)
}

// takeOver puts the next certificate, and the key that it is for, in the place
// of those in use: the key first. Where a cut leaves a certificate for the
// earlier key, the certificate's step finds the next one staged.
func (p *Program) takeOver(next *identity.Next) error {
	if next == nil {
		return nil
	}
	if p.coming != nil {
		st, err := token.OpenStore(p.shelf.Name(), token.ReadWrite)
		if err != nil {
			return err
		}
		defer st.Close()
		label := p.cfg.LDevID.Token.Key
		if err := st.ReplaceKey(p.token.ID, label, label+suffixNext, label+suffixEarlier); err != nil {
			return err
		}
		p.coming = nil
	}
	return next.TakeOver(p.files)
}

// through does something with the key in use and the next one, as the token
// has them. Its own errors keep their hints.
func (p *Program) through(do func(key, coming crypto.Signer) error) error {
	pin, err := p.pins.Read(fileUserPIN)
	if err != nil {
		return err
	}
	var failure error
	err = p.library(func(m *token.Module) error {
		key := tokenKey{m, p.cfg.LDevID.Token.Label, string(pin), p.pair}
		coming := key
		if p.coming != nil {
			coming.pair = p.coming
		}
		failure = do(key, coming)
		return nil
	})
	return errors.Join(failure, err)
}

// tokenKey is a key of the token, which is opened for each signature: the token
// opens one at a time.
type tokenKey struct {
	m          *token.Module
	label, pin string
	pair       *token.Key
}

func (k tokenKey) Public() crypto.PublicKey { return k.pair.Public }

func (k tokenKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signer, err := k.m.Signer(k.label, k.pin, k.pair.Label, k.pair.ID)
	if err != nil {
		return nil, err
	}
	signature, err := signer.Sign(random, digest, opts)
	return signature, errors.Join(err, signer.Close())
}
