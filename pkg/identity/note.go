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

// The notes of how a run ended.
const (
	FileRefusal = "refused.json" // the server said no
	FileLater   = "later.json"   // the server said: later
)

// note is the one thing that is kept of how a run ended. A server that said no
// is not asked the same again at each boot and each quarter of an hour, by every
// device of a fleet whose password was changed; one that said "in three hours"
// is not asked before. What it was asked with is kept as a digest only; another
// configuration or credential is tried at once.
type note struct {
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

const (
	// longestNote is more than any wait: what lasts longer is no note of ours.
	longestNote = 48 * time.Hour
	// forgotten is how long after its time a note still says how busy the server
	// was. A device that was switched off for a week begins anew.
	forgotten = 24 * time.Hour
)

func readNote(files *store.Dir, file string) (*note, error) {
	data, err := files.Read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var n note
	if json.Unmarshal(data, &n) != nil {
		return nil, nil // a note that says nothing
	}
	return &n, nil
}

// stands says whether the note is still to be respected. A note of the future
// is one of a clock that was wrong.
func (n *note) stands(now time.Time) bool {
	return now.After(n.At) && now.Before(n.Until) && n.Until.Sub(n.At) <= longestNote
}

// recent says whether what it counts still tells of the server's load.
func (n *note) recent(now time.Time) bool {
	return now.After(n.At) && now.Sub(n.Until) < forgotten && n.Times > 0
}

// NotYet is what a status says of a note that stands, or "".
func NotYet(files *store.Dir) string {
	for _, file := range []string{FileRefusal, FileLater} {
		if n, err := readNote(files, file); err == nil && n != nil && n.stands(time.Now()) {
			return n.says(file)
		}
	}
	return ""
}

func (n *note) says(file string) string {
	what := "refused"
	if file == FileLater {
		what = "had no time"
	}
	return fmt.Sprintf("the server %s at %s, and is not asked the same again before %s", what, n.At.Format(time.RFC3339), n.Until.Format(time.RFC3339))
}

// kept is the note about this very request, or nil. A run by hand is somebody
// who wants to know now, and has none.
func (o Order) kept(file string) (*note, error) {
	n, err := readNote(o.Files, file)
	if err != nil || n == nil || !systemd.Unit() {
		return nil, err
	}
	if digest, err := o.digest(n.Salt); err != nil || digest != n.Digest {
		return nil, err
	}
	return n, nil
}

// allowed is not nil while a note of the same request stands.
func (o Order) allowed() error {
	refused, err := o.kept(FileRefusal)
	if err != nil {
		return err
	}
	if refused != nil && refused.stands(time.Now()) {
		return step.As(step.ServerRefused,
			fmt.Sprintf("put [%s] or its credential right, which is tried at once; when the server was put right, run the program by hand, or remove %s", o.Section, o.Files.Path(FileRefusal)),
			errors.New("cannot enrol yet: "+refused.says(FileRefusal)))
	}
	later, err := o.kept(FileLater)
	if err != nil || later == nil || !later.stands(time.Now()) {
		return err
	}
	return &step.Error{Class: step.Temporary, Busy: true, Drawn: true, NotBefore: later.Until, Failures: later.Times,
		Hint: fmt.Sprintf("nothing needs to be done; to ask at once, run the program by hand, or remove %s", o.Files.Path(FileLater)),
		Err:  errors.New("cannot enrol yet: " + later.says(FileLater))}
}

// since adds to a failure how often the server was busy before this run.
func (o Order) since(failure error) error {
	busy, ok := errors.AsType[*step.Error](failure)
	if !ok || !busy.Busy {
		return failure
	}
	later, err := o.kept(FileLater)
	if later != nil && later.recent(time.Now()) {
		counted := *busy
		counted.Failures, counted.Err = later.Times, failure
		failure = &counted
	}
	return errors.Join(failure, err)
}

// Postpone is what a step of [step.Postponer] does whose order it was.
func (o Order) Postpone(until time.Time, failures int) error {
	return o.write(FileLater, note{Until: until.UTC(), Times: failures})
}

// remember keeps the note of a refusal, and forgets all once there is a
// certificate. Another failure says nothing of what the server will answer.
func (o Order) remember(failure error) error {
	if failure == nil {
		return errors.Join(o.Files.Remove(FileRefusal), o.Files.Remove(FileLater))
	}
	if step.ClassOf(failure) != step.ServerRefused {
		return nil
	}
	last, err := readNote(o.Files, FileRefusal)
	if err != nil {
		return err
	}
	times := 1
	if last != nil {
		if same, err := o.digest(last.Salt); err == nil && same == last.Digest {
			times = last.Times + 1
		}
	}
	return o.write(FileRefusal, note{Until: time.Now().UTC().Truncate(time.Second).Add(refusalWait(times)), Times: times})
}

// write completes a note and writes it.
func (o Order) write(file string, n note) (err error) {
	n.Salt, n.At = rand.Text(), time.Now().UTC().Truncate(time.Second)
	if n.Digest, err = o.digest(n.Salt); err != nil {
		return err
	}
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return o.Files.Write(file, append(data, '\n'), ModePrivate)
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
