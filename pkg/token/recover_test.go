package token

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/plain"
)

// Every state that a cut can leave, what Recover makes of it, and that the library is
// content with the result.
func TestRecover(t *testing.T) {
	d := newDevice(t)
	d.initToken()
	made := d.store
	fresh := filepath.Join(t.TempDir(), "fresh") // tables, no token
	if err := os.Mkdir(fresh, 0o700); err != nil {
		t.Fatal(err)
	}
	d.store = fresh
	d.do(func(*Module) {})

	const (
		db  = DBName
		old = DBName + ".old"
		bak = DBName + ".bak"
	)
	type files map[string]string // name: made, fresh, "" or a content
	for _, tt := range []struct {
		name  string
		files files
		want  error
		token bool
	}{
		{"clean", files{db: "made"}, nil, true},
		{"migration: before the renames", files{db: "made", bak: "made"}, nil, true},
		{"migration: in the copying", files{db: "made", bak: "garbage, garbage, garbage"}, nil, true},
		{"migration: copy just made", files{db: "made", bak: ""}, nil, true},
		{"migration: between the renames", files{old: "made", bak: "made"}, nil, true},
		{"the same, after the library's next start", files{db: "", old: "made", bak: "made"}, nil, true},
		{"the same, after ptool's next start", files{db: "fresh", old: "made", bak: "made"}, nil, true},
		{"migration: after the renames", files{db: "made", old: "made"}, nil, true},
		{"only the copy is left", files{bak: "made"}, nil, true},
		{"damaged original, whole copy", files{db: "garbage", bak: "made"}, ErrCorrupt, false},
		{"no token anywhere", files{db: "fresh", old: "fresh"}, nil, false},
		{"nothing whole, one damaged", files{old: "garbage, garbage", bak: "fresh"}, ErrCorrupt, false},
		{"making: no byte", files{db: ""}, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fill := func() string {
				dir := t.TempDir()
				for name, content := range tt.files {
					switch content {
					case "made":
						content = string(must[[]byte](t)(os.ReadFile(filepath.Join(made, db))))
					case "fresh":
						content = string(must[[]byte](t)(os.ReadFile(filepath.Join(fresh, db))))
					}
					write(t, filepath.Join(dir, name), content)
				}
				return dir
			}
			d.store = fill()
			if err := Recover(d.store); !errors.Is(err, tt.want) {
				t.Fatalf("Recover: %v", err)
			}
			if tt.want != nil {
				if got, want := list(t, d.store), list(t, fill()); got != want {
					t.Errorf("files %s, were %s", got, want)
				}
				return
			}
			if names := list(t, d.store); names != "" && len(must[[]os.DirEntry](t)(os.ReadDir(d.store))) != 1 {
				t.Errorf("files: %s", names)
			}
			if err := Recover(d.store); err != nil {
				t.Errorf("Recover again: %v", err)
			}
			d.do(func(m *Module) {
				if err := m.CheckPIN(label, userPIN); tt.token != (err == nil) {
					t.Errorf("CheckPIN: %v", err)
				}
			})
		})
	}
}

// The library makes its tables in single steps; a cut there is not healed by it.
func TestRecoverHalfMade(t *testing.T) {
	d := newDevice(t)
	write(t, filepath.Join(d.store, DBName), "")
	exec1(t, d.store, `CREATE TABLE tokens(id INTEGER PRIMARY KEY, pid INTEGER NOT NULL, label TEXT UNIQUE, config TEXT NOT NULL)`)
	if _, err := OpenStore(d.store, ReadOnly); !errors.Is(err, ErrUnclean) {
		t.Errorf("OpenStore: %v", err)
	}
	if _, err := Open(d.options()); !errors.Is(err, ErrUnclean) {
		t.Errorf("Open: %v", err)
	}
	if err := Recover(d.store); err != nil {
		t.Fatal(err)
	}
	if names := list(t, d.store); names != "" {
		t.Errorf("left: %s", names)
	}
	d.initToken()
}

// A lock that was left keeps all but its owner out; one that somebody holds is his.
func TestLeftLocked(t *testing.T) {
	d := newDevice(t)
	d.initToken()
	path := filepath.Join(d.store, DBName+".lock")
	if LeftLocked(d.store) {
		t.Fatal("there is no lock")
	}
	unlock, err := lock(filepath.Join(d.store, DBName))
	if err != nil {
		t.Fatal(err)
	}
	if LeftLocked(d.store) {
		t.Error("a lock that is held counts as left")
	}
	unlock()
	for _, mode := range []os.FileMode{0o640, 0o440} { // the library's; another user's, as good as
		write(t, path, "")
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if !LeftLocked(d.store) {
			t.Error("a lock that nobody holds does not count as left")
		}
		if err := recoverAs(t, d.store); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the lock is there still: %v", err)
		}
	}
	d.do(func(m *Module) {
		if err := m.CheckPIN(label, userPIN); err != nil {
			t.Errorf("CheckPIN: %v", err)
		}
	})
}

// recoverAs recovers as a plain user, who may not write every file.
func recoverAs(t *testing.T, dir string) (err error) {
	t.Run("plain", func(t *testing.T) {
		plain.User(t)
		err = Recover(dir)
	})
	return err
}

// ensure is what a caller does with whatever it finds.
func ensure(o Options) error {
	if err := Recover(o.Store); err != nil {
		return err
	}
	m, err := Open(o)
	if err != nil {
		return err
	}
	defer m.Close()
	err = m.CheckPIN(label, userPIN)
	switch {
	case errors.Is(err, ErrNoToken):
		return m.makeToken(label, soPIN, userPIN)
	case errors.Is(err, ErrPINNotInitialized):
		return m.InitPIN(label, soPIN, userPIN)
	}
	return err
}

// TestMain is the process of TestCutInitToken too, which needs one of its own because
// a TPM that fails can make the C library crash; see Module.find.
func TestMain(m *testing.M) {
	store := os.Getenv("TEST_ENSURE_STORE")
	if store == "" {
		os.Exit(m.Run())
	}
	if err := ensure(Options{Path: os.Getenv("TEST_ENSURE_MODULE"), Store: store, TCTI: os.Getenv("TEST_ENSURE_TCTI")}); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// The TPM goes away at each command in turn, before or after it has carried it out. The
// next run, with what the disk and the TPM have, must end with a token that works.
func TestCutInitToken(t *testing.T) {
	d := newDevice(t)
	for _, lost := range []bool{false, true} {
		cuts, crashes := int64(0), 0
		for done := false; !done; cuts++ {
			d.store = t.TempDir()
			d.lostReply.Store(lost)
			d.left.Store(cuts)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "TEST_ENSURE_MODULE="+d.module, "TEST_ENSURE_STORE="+d.store, "TEST_ENSURE_TCTI="+d.tcti())
			out, err := cmd.CombinedOutput()
			done = err == nil
			if bytes.Contains(out, []byte("SIGSEGV")) {
				crashes++
			}
			d.left.Store(-1)
			d.with(flushAll) // the power cycle
			if err := ensure(d.options()); err != nil {
				t.Fatalf("after a cut at command %d (lost reply: %v): %v\nthe cut run:\n%s", cuts, lost, err, out)
			}
			d.do(func(m *Module) {
				if err := m.CheckPIN(label, userPIN); err != nil {
					t.Fatalf("after a cut at command %d (lost reply: %v): %v", cuts, lost, err)
				}
			})
			if cuts > 200 {
				t.Fatal("it never ends")
			}
		}
		t.Logf("lost reply %v: %d cuts", lost, cuts-1)
		if crashes > 0 {
			t.Errorf("lost reply %v: the library crashed in %d of them", lost, crashes)
		}
	}
	if n := d.lockoutCounter(); n != 0 {
		t.Errorf("lockout counter is %d", n)
	}
}

// A transaction that was cut after SQLite began to write into the database.
func TestHotJournal(t *testing.T) {
	dir := madeStore(t)
	u := url.URL{Scheme: "file", Path: filepath.Join(dir, DBName)}
	db := must[*sql.DB](t)(sql.Open("sqlite3", u.String()))
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, statement := range []string{`PRAGMA cache_size = 1`, `BEGIN`, `DELETE FROM tokens`,
		`INSERT INTO tobjects (tokid, attrs) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 500) SELECT 1, hex(zeroblob(2000)) FROM n`} {
		must[sql.Result](t)(db.Exec(statement))
	}
	cut := filepath.Join(t.TempDir(), "cut")
	copyStore(t, dir, cut)
	if list(t, cut) != " -journal" {
		t.Fatalf("files: %s", list(t, cut))
	}
	os.Chmod(cut, 0o500)
	if _, err := OpenStore(cut, ReadOnly); !errors.Is(err, ErrUnclean) {
		t.Errorf("OpenStore: %v", err)
	}
	os.Chmod(cut, 0o700)
	if err := Recover(cut); err != nil {
		t.Fatal(err)
	}
	s := must[*Store](t)(OpenStore(cut, ReadOnly))
	defer s.Close()
	must[*Token](t)(s.Token("edge"))
	if names := list(t, cut); names != "" {
		t.Errorf("left: %s", names)
	}
}
