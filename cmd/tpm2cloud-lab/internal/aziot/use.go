package aziot

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Use is a key in a token that is used over and over, as aziot-keyd uses it: the library is
// initialised once, so that it knows of the store what was there by then, and each use is a session
// of its own, with a login.
type Use struct {
	URI TokenURI
	Own string // label of a key that is made anew, and used, after each use; empty: none
	// Pause is between two uses.
	Pause time.Duration
}

// Used is what came of it.
type Used struct {
	Uses     int    `json:"uses"`     // signatures that were verified
	Made     int    `json:"made"`     // keys of our own that have signed
	Failures int    `json:"failures"` // uses and makings that the library refused
	Last     string `json:"last,omitempty"`
}

// Run uses the key until ctx ends, and writes a line with the first use and one with the result. A
// refusal is counted, and no end; a signature that is wrong is one. (Of our own key that counts as a
// refusal: the library makes and removes the halves of a pair one by one, and a power cut between
// them leaves two that do not fit.)
func (u Use) Run(ctx context.Context, path string, stdout io.Writer) error {
	m := &module{path: path, held: true}
	defer m.release()
	var result Used
	for ctx.Err() == nil {
		err := sign(m, &u.URI)
		if errors.Is(err, errWrongSignature) {
			return err
		}
		if err == nil {
			if result.Uses++; result.Uses == 1 {
				fmt.Fprintf(stdout, "in use: key %q of token %q\n", u.URI.Object, u.URI.Token)
			}
			if u.Own != "" {
				if err = u.own(m); err == nil {
					result.Made++
				}
			}
		}
		if err != nil {
			result.Failures++
			result.Last = err.Error()
		}
		select {
		case <-time.After(u.Pause):
		case <-ctx.Done():
		}
	}
	return json.NewEncoder(stdout).Encode(result)
}

var errWrongSignature = errors.New("the signature is wrong")

// own makes the key of our own anew, and uses it.
func (u Use) own(m *module) error {
	own := u.URI
	own.Object, own.HasObject = u.Own, true
	if err := m.generate(&own, algorithmEC); err != nil {
		return err
	}
	return sign(m, &own)
}

func sign(m *module, uri *TokenURI) error {
	key, err := m.load(uri)
	if err != nil {
		return err
	}
	digest := sha256.Sum256([]byte(rand.Text()))
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return err
	}
	good := false
	switch public := key.Public().(type) {
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(public, digest[:], signature)
	case *rsa.PublicKey:
		good = rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature) == nil
	}
	if !good {
		return fmt.Errorf("key %q of token %q: %w", uri.Object, uri.Token, errWrongSignature)
	}
	return nil
}
