package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
	"github.com/tpm2cloud/tpm2cloud/pkg/systemd"
)

// FileRefusal is the note of a server's refusal.
const FileRefusal = "refused.json"

// refusal is the one note that is kept of how a run ended: a server that said
// no is not asked the same again at each boot and each quarter of an hour, by
// every device of a fleet whose password was changed. What it was asked with is
// kept as a digest only; another configuration or credential is tried at once.
type refusal struct {
	Salt   string    `json:"salt"`
	Digest string    `json:"digest"`
	At     time.Time `json:"at"`
	Until  time.Time `json:"until"`
	Times  int       `json:"times"` // in a row
}

// The waits after a refusal: they double from the first to the longest, each a
// quarter longer or shorter by chance.
const (
	firstRefusalWait   = time.Hour
	longestRefusalWait = 24 * time.Hour
)

func readRefusal(files *store.Dir) (*refusal, error) {
	data, err := files.Read(FileRefusal)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r refusal
	if json.Unmarshal(data, &r) != nil {
		return nil, nil // a note that says nothing
	}
	return &r, nil
}

// stands says whether the refusal is still to be respected. A note of the
// future is one of a clock that was wrong.
func (r *refusal) stands(now time.Time) bool { return now.After(r.At) && now.Before(r.Until) }

// RefusedUntil is what a status says of a refusal that stands, or "".
func RefusedUntil(files *store.Dir) string {
	r, err := readRefusal(files)
	if err != nil || r == nil || !r.stands(time.Now()) {
		return ""
	}
	return r.String()
}

func (r *refusal) String() string {
	return fmt.Sprintf("the server refused at %s, and is not asked the same again before %s", r.At.Format(time.RFC3339), r.Until.Format(time.RFC3339))
}

// allowed is not nil while a refusal of the same request stands. A run by hand
// is somebody who wants to know now.
func (o Order) allowed() error {
	r, err := readRefusal(o.Files)
	if err != nil || r == nil || !systemd.Unit() || !r.stands(time.Now()) {
		return err
	}
	if digest, err := o.digest(r.Salt); err != nil || digest != r.Digest {
		return err
	}
	return step.As(step.ServerRefused,
		fmt.Sprintf("put [%s] or its credential right, which is tried at once; when the server was put right, run the program by hand, or remove %s", o.Section, o.Files.Path(FileRefusal)),
		errors.New("cannot enrol yet: "+r.String()))
}

// remember keeps the note of a refusal, and forgets it once there is a
// certificate. Another failure says nothing of what the server will answer.
func (o Order) remember(failure error) error {
	if failure == nil {
		return o.Files.Remove(FileRefusal)
	}
	if step.ClassOf(failure) != step.ServerRefused {
		return nil
	}
	last, err := readRefusal(o.Files)
	if err != nil {
		return err
	}
	r := refusal{Salt: rand.Text(), At: time.Now().UTC().Truncate(time.Second), Times: 1}
	if r.Digest, err = o.digest(r.Salt); err != nil {
		return err
	}
	if last != nil {
		if same, err := o.digest(last.Salt); err == nil && same == last.Digest {
			r.Times = last.Times + 1
		}
	}
	r.Until = r.At.Add(refusalWait(r.Times))
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return o.Files.Write(FileRefusal, append(data, '\n'), ModePrivate)
}

// refusalWait is the wait after the n-th refusal in a row.
func refusalWait(n int) time.Duration {
	wait := firstRefusalWait
	for range n - 1 {
		if wait = 2 * wait; wait >= longestRefusalWait {
			wait = longestRefusalWait
			break
		}
	}
	jitter, err := rand.Int(rand.Reader, big.NewInt(int64(wait/2)))
	if err != nil {
		return wait
	}
	return wait - wait/4 + time.Duration(jitter.Int64())
}

// digest tells whether it is the same that a server is asked: where, by whom,
// with which credential, for which key and name.
func (o Order) digest(salt string) (string, error) {
	asked := struct {
		Salt   string
		Enroll config.Enroll
		Secret string
		Name   string
		Key    []byte
		Shown  [][]byte
	}{Salt: salt, Enroll: o.Enroll, Name: o.Subject.String()}
	var err error
	if asked.Key, err = x509.MarshalPKIXPublicKey(o.Key); err != nil {
		return "", err
	}
	if name := secretOf(o.Enroll); name != "" {
		if asked.Secret, err = o.Config.ReadSecret(name); err != nil {
			return "", err
		}
	}
	if o.Identity != nil {
		asked.Shown = o.Identity.Certificate
	}
	data, err := json.Marshal(asked)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}
