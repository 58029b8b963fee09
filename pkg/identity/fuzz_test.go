package identity

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/limit"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// kept is a directory of an identity with one file in it.
func kept(t *testing.T, file string, data []byte) *store.Dir {
	t.Helper()
	name := t.TempDir()
	if err := os.WriteFile(filepath.Join(name, file), data, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := store.Open(name, modeDir)
	t.Cleanup(func() { dir.Close() })
	return dir
}

// FuzzNote: a note that was damaged, or written by a clock that was wrong, keeps no
// device from its CA for longer than any note does.
func FuzzNote(f *testing.F) {
	now := time.Now()
	for _, r := range []note{
		{Salt: "salt", Digest: "digest", At: now.Add(-time.Minute), Until: now.Add(time.Hour), Times: 1},
		{At: now.Add(-time.Minute), Until: now.AddDate(1000, 0, 0), Times: 9223372036854775807},
	} {
		data, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("null"))
	f.Add([]byte(`{"times":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		defer limit.Time(t, 5*time.Second)()
		r, err := readNote(kept(t, FileRefusal, data), FileRefusal)
		if err != nil || r == nil {
			if err != nil || json.Valid(data) && json.Unmarshal(data, new(note)) == nil {
				t.Errorf("%q: %v, %v", data, r, err)
			}
			return
		}
		if at := now.Add(longestNote); r.stands(now) && r.stands(at) {
			t.Errorf("%+v stands at %s and still at %s", r, now, at)
		}
		if wait := refusalWait(r.Times + 1); wait < firstRefusalWait/2 || wait > 2*longestRefusalWait {
			t.Errorf("after %d refusals: %s", r.Times, wait)
		}
	})
}

// FuzzState: what lies in an identity's directory is used, or it is an error that names it.
func FuzzState(f *testing.F) {
	ca := pki.NewCA(f, "root", nil)
	record, err := json.Marshal(EK{Handle: 0x81010001, Public: []byte{0, 1}, Verified: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(record)
	f.Add([]byte(`{"handle":-1}`))
	f.Add(pki.PEM(ca.Cert, ca.Cert))
	f.Fuzz(func(t *testing.T, data []byte) {
		defer limit.Time(t, 5*time.Second)()
		for file, read := range map[string]func(*store.Dir) error{
			FileEK:          func(d *store.Dir) error { _, err := ReadEK(d); return err },
			FileCA:          func(d *store.Dir) error { _, err := ReadCA(d); return err },
			FileCertificate: func(d *store.Dir) error { _, err := ReadChain(d); return err },
		} {
			err := read(kept(t, file, data))
			if err != nil && (step.ClassOf(err) != step.Refused || errors.Is(err, fs.ErrNotExist)) {
				t.Errorf("%s: class %d: %v", file, step.ClassOf(err), err)
			}
		}
		dir := kept(t, FileEK, data)
		if e, err := ReadEK(dir); err == nil {
			if err := e.Save(dir); err != nil {
				t.Fatal(err)
			}
			if again, err := ReadEK(dir); err != nil || again.Handle != e.Handle || string(again.Public) != string(e.Public) || again.Verified != e.Verified || !again.SavedIn(dir) {
				t.Errorf("%+v became %+v, %v", e, again, err)
			}
		}
	})
}
