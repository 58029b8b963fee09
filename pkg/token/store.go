package token

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	sqlite "github.com/mattn/go-sqlite3"
)

// DBName is the store's file in its directory.
const DBName = "tpm2_pkcs11.sqlite3"

// Mode says what a [Store] is opened for.
type Mode int

const (
	// ReadOnly writes no byte into the directory, which need not be writable, and holds
	// no lock but SQLite's own shared one while a query runs.
	ReadOnly Mode = iota

	// ReadWrite changes rows of a store that exists. It never makes one: that is the
	// library's business.
	ReadWrite
)

// Store is the tpm2-pkcs11 store of a directory. It is not for concurrent use.
type Store struct {
	path   string
	mode   Mode
	db     *sql.DB
	schema int // 0: made, but nothing in it yet
}

// Token is a row of tokens with what belongs to it.
type Token struct {
	ID      int64
	Label   string
	Seals   Seals
	Primary Primary
}

// Seals are the two TPM objects that hold the wrapping key, one for each PIN:
// marshalled TPM2B_PUBLIC and TPM2B_PRIVATE, and the salt that [SealAuth] takes. The
// user's three are empty after C_InitToken.
type Seals struct {
	UserPublic, UserPrivate []byte
	UserSalt                string
	SOPublic, SOPrivate     []byte
	SOSalt                  string
}

// OpenStore opens the store in dir. An absent one is [fs.ErrNotExist]; what an
// interruption left in need of [Recover] is [ErrUnclean].
func OpenStore(dir string, mode Mode) (_ *Store, err error) {
	path, err := filepath.Abs(filepath.Join(dir, DBName))
	if err != nil {
		return nil, fmt.Errorf("cannot open the token store: %w", err)
	}
	// Before the file itself: a cut migration can have left none.
	if err := leftovers(path); err != nil {
		return nil, fmt.Errorf("cannot open the token store: %w", err)
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("cannot open the token store: %w", err)
	}
	db, err := openDB(path, mode)
	if err != nil {
		return nil, fmt.Errorf("cannot open the token store: %w", err)
	}
	s := &Store{path: path, mode: mode, db: db}
	if s.schema, err = schemaVersion(db); err != nil {
		db.Close()
		return nil, fmt.Errorf("cannot open the token store %s: %w", path, err)
	}
	return s, nil
}

func openDB(path string, mode Mode) (*sql.DB, error) {
	q := url.Values{
		"_busy_timeout": {"5000"},
		"mode":          {"ro"},
		"_query_only":   {"true"},
	}
	if mode == ReadWrite {
		q = url.Values{
			"_busy_timeout": {"5000"},
			"mode":          {"rw"}, // not rwc: never create
			// Take the write lock at BEGIN: a transaction that reads first and then
			// writes could otherwise fail in its middle.
			"_txlock": {"immediate"},
			// FULL syncs the file, but not the directory after the journal's unlink,
			// which is the commit in DELETE mode: a power cut could bring the journal
			// back and undo the rows of a key that is in the TPM by then.
			"_synchronous": {"EXTRA"},
		}
	}
	// No _journal_mode: DELETE, SQLite's default, is what the library leaves there.
	u := url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}
	db, err := sql.Open("sqlite3", u.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// schemaVersion returns 0 for a store of no bytes: the library was cut right after it
// made the file, and goes on from there.
func schemaVersion(db *sql.DB) (version int, err error) {
	var tables int
	err = db.QueryRow(`SELECT count(*) FROM sqlite_master`).Scan(&tables)
	if err != nil || tables == 0 {
		return 0, sqliteError(err)
	}
	var has int
	err = db.QueryRow(`SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'schema'`).Scan(&has)
	if err != nil {
		return 0, sqliteError(err)
	}
	if has == 1 {
		err = db.QueryRow(`SELECT schema_version FROM schema WHERE id = 1`).Scan(&version)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return 0, sqliteError(err)
		}
	}
	if version == 0 {
		// The library makes its tables one by one, the version last, and fails for ever
		// on a store where that was cut.
		return 0, fmt.Errorf("%w: no schema version", ErrUnclean)
	}
	return version, nil
}

// sqliteError gives SQLite's errors their meaning here.
func sqliteError(err error) error {
	se, ok := errors.AsType[sqlite.Error](err)
	switch {
	case !ok:
		return err
	case se.ExtendedCode == sqlite.ErrReadonlyRollback:
		// A hot journal: rolling it back takes a writer.
		return fmt.Errorf("%w: %w", ErrUnclean, err)
	case se.Code == sqlite.ErrNotADB, se.Code == sqlite.ErrCorrupt:
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	case se.Code == sqlite.ErrBusy, se.Code == sqlite.ErrLocked:
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return err
}

// Close closes the store.
func (s *Store) Close() error { return s.db.Close() }

// Schema is the version of the store's schema: 4 for 1.4 and 1.5 up to 9 for 1.10; 0
// for a store in which the library has not made its tables yet.
func (s *Store) Schema() int { return s.schema }

// Labels returns the labels of all tokens, in the order of their making.
func (s *Store) Labels() ([]string, error) {
	if s.schema == 0 {
		return nil, nil
	}
	labels, err := query(s.db, func(scan scanner) (string, error) {
		var l sql.NullString
		return l.String, scan(&l)
	}, `SELECT label FROM tokens ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("cannot list the tokens: %w", err)
	}
	return labels, nil
}

// Primaries returns the storage keys of the store, oldest first. C_InitToken makes a
// token under the first, if there is any, without a look at the TPM: check it before,
// or the token is dead from birth.
func (s *Store) Primaries() ([]Primary, error) {
	if s.schema == 0 {
		return nil, nil
	}
	primaries, err := query(s.db, func(scan scanner) (Primary, error) {
		var id int64
		var config string
		if err := scan(&id, &config); err != nil {
			return Primary{}, err
		}
		p, err := parsePrimary(config)
		if err != nil {
			return p, fmt.Errorf("row %d: %w", id, err)
		}
		p.ID = id
		return p, nil
	}, `SELECT id, config FROM pobjects ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("cannot read the storage keys of the token store: %w", err)
	}
	return primaries, nil
}

// Token returns the token of that label, or [ErrNoToken].
func (s *Store) Token(label string) (*Token, error) {
	t := &Token{Label: label}
	err := sql.ErrNoRows
	var config string
	var salt sql.NullString
	if s.schema != 0 {
		err = s.db.QueryRow(`
			SELECT t.id, p.id, p.config,
			       s.userpub, s.userpriv, s.userauthsalt, s.sopub, s.sopriv, s.soauthsalt
			FROM tokens t JOIN pobjects p ON p.id = t.pid JOIN sealobjects s ON s.tokid = t.id
			WHERE t.label = ?`, label).Scan(&t.ID, &t.Primary.ID, &config,
			&t.Seals.UserPublic, &t.Seals.UserPrivate, &salt,
			&t.Seals.SOPublic, &t.Seals.SOPrivate, &t.Seals.SOSalt)
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNoToken
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read token %q: %w", label, sqliteError(err))
	}
	t.Seals.UserSalt = salt.String
	id := t.Primary.ID
	if t.Primary, err = parsePrimary(config); err != nil {
		return nil, fmt.Errorf("cannot read token %q: storage key %d: %w", label, id, err)
	}
	t.Primary.ID = id
	return t, nil
}

// Empty says whether a token holds no object of any kind.
func (s *Store) Empty(tokenID int64) (bool, error) {
	var n int
	if err := s.db.QueryRow("SELECT count(*) FROM tobjects WHERE tokid = ?", tokenID).Scan(&n); err != nil {
		return false, fmt.Errorf("cannot count the objects of the token: %w", err)
	}
	return n == 0, nil
}

// Keys returns the key pairs of a token with that label, or all if label is empty. A
// row without its other half is a Key whose Rows say so. Objects that are not of a pair
// (certificates, secret keys) are left out.
func (s *Store) Keys(tokenID int64, label string) ([]Key, error) {
	if s.schema == 0 {
		return nil, nil
	}
	rows, err := readRows(s.db, tokenID, label)
	var keys []Key
	if err == nil {
		keys, err = pairs(rows)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the keys of the token: %w", err)
	}
	return keys, nil
}

// pairs makes key pairs of rows.
func pairs(rows []row) (keys []Key, err error) {
	for _, r := range rows {
		half := PublicRow
		if r.class == classPrivate {
			half = PrivateRow
		}
		// The halves of a pair have label, ID and public area in common.
		i := slices.IndexFunc(keys, func(k Key) bool {
			return k.Rows&half == 0 && k.Label == string(r.label) &&
				string(k.ID) == string(r.id) && string(k.TPM2BPublic) == string(r.public)
		})
		if i < 0 {
			k := Key{Label: string(r.label), ID: r.id, TPM2BPublic: r.public}
			if len(r.public) > 0 {
				if _, k.Public, err = parsePublic(r.public); err != nil {
					return nil, fmt.Errorf("row %d: %w: %w", r.rowID, ErrCorrupt, err)
				}
			}
			keys = append(keys, k)
			i = len(keys) - 1
		}
		keys[i].Rows |= half
		if half == PrivateRow {
			keys[i].TPM2BPrivate, keys[i].WrappedAuth = r.private, r.wrapped
		}
	}
	return keys, nil
}

// readRows returns the rows of key pairs, in order.
func readRows(q querier, tokenID int64, label string) ([]row, error) {
	rows, err := query(q, func(scan scanner) (row, error) {
		var id int64
		var attrs string
		if err := scan(&id, &attrs); err != nil {
			return row{}, err
		}
		r, err := parseRow(attrs)
		if err != nil {
			return r, fmt.Errorf("row %d: %w", id, err)
		}
		r.rowID = id
		return r, nil
	}, `SELECT id, attrs FROM tobjects WHERE tokid = ? ORDER BY id`, tokenID)
	return slices.DeleteFunc(rows, func(r row) bool {
		return !r.isKey || label != "" && string(r.label) != label
	}), err
}

type scanner func(dest ...any) error

// querier is an *sql.DB or an *sql.Tx.
type querier interface {
	Query(query string, args ...any) (*sql.Rows, error)
}

// query collects what each makes of the rows.
func query[T any](q querier, each func(scanner) (T, error), text string, args ...any) ([]T, error) {
	rows, err := q.Query(text, args...)
	if err != nil {
		return nil, sqliteError(err)
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		v, err := each(rows.Scan)
		if err != nil {
			return nil, sqliteError(err)
		}
		all = append(all, v)
	}
	return all, sqliteError(rows.Err())
}

// exists tells a file that is there from one that is not; what can't be told is an
// error.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
