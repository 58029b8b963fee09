package token

import (
	"database/sql"
	"errors"
	"fmt"
)

// ReplaceSeals exchanges both seals of a token in one UPDATE, if they are still those
// that the caller read; else it is [ErrSealsChanged]. The new ones must hold the same
// wrapping key, or every wrapped auth value in the token is lost.
//
// The seals that the library makes are subject to dictionary-attack protection, and
// power cuts alone can lock them (see the package documentation); C_InitPIN makes such
// a one again, C_SetPIN keeps what it finds.
func (s *Store) ReplaceSeals(tokenID int64, old, new Seals) error {
	for _, b := range [][]byte{new.UserPublic, new.UserPrivate, new.SOPublic, new.SOPrivate} {
		if len(b) <= 2 {
			return errors.New("cannot replace the seals: a new one is empty")
		}
	}
	err := s.write(func(tx *sql.Tx) error {
		// IS, because the user's columns can be NULL. The salts are compared as well,
		// so that a PIN changed meanwhile is noticed.
		res, err := tx.Exec(`
			UPDATE sealobjects
			SET userpub = ?, userpriv = ?, userauthsalt = ?, sopub = ?, sopriv = ?, soauthsalt = ?
			WHERE tokid = ? AND userpub IS ? AND userpriv IS ? AND userauthsalt IS ?
			  AND sopub IS ? AND sopriv IS ? AND soauthsalt IS ?`,
			new.UserPublic, new.UserPrivate, new.UserSalt, new.SOPublic, new.SOPrivate, new.SOSalt,
			tokenID, blob(old.UserPublic), blob(old.UserPrivate), text(old.UserSalt),
			blob(old.SOPublic), blob(old.SOPrivate), text(old.SOSalt))
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n != 1 {
			return errors.Join(ErrSealsChanged, err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot replace the seals: %w", err)
	}
	return nil
}

// AddKey links a TPM key to the token: both rows in one transaction, on disk when it
// returns. A label that has a row already, whole pair or half, is [ErrKeyExists]; a key
// that keyd could not use is [ErrUnsuitableKey]. The private row comes first, as
// tpm2_ptool has it.
func (s *Store) AddKey(tokenID int64, k Key) error {
	private, public, err := k.encode()
	if err != nil {
		return fmt.Errorf("cannot add key %q: %w", k.Label, err)
	}
	err = s.write(func(tx *sql.Tx) error {
		have, err := readRows(tx, tokenID, k.Label)
		if err != nil {
			return err
		}
		if len(have) > 0 {
			return ErrKeyExists
		}
		// Foreign keys are off, as they are in the library: ask.
		var n int
		if err := tx.QueryRow(`SELECT count(*) FROM tokens WHERE id = ?`, tokenID).Scan(&n); err != nil {
			return err
		}
		if n != 1 {
			return ErrNoToken
		}
		for _, attrs := range []string{private, public} {
			if _, err := tx.Exec(`INSERT INTO tobjects (tokid, attrs) VALUES (?, ?)`, tokenID, attrs); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot add key %q: %w", k.Label, err)
	}
	return nil
}

// RemoveKey removes the rows of that label, halves too; none is [ErrNoKey]. The key in
// the TPM is the caller's.
func (s *Store) RemoveKey(tokenID int64, label string) error {
	err := s.write(func(tx *sql.Tx) error {
		rows, err := readRows(tx, tokenID, label)
		if err != nil {
			return err
		}
		if label == "" || len(rows) == 0 {
			return ErrNoKey
		}
		for _, r := range rows {
			if _, err := tx.Exec(`DELETE FROM tobjects WHERE id = ?`, r.rowID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot remove key %q: %w", label, err)
	}
	return nil
}

// ReplaceKey gives the key of the label next the label current, and the one that had it
// the label earlier, in one transaction. No next one, or half of one, is [ErrNoKey]; an
// earlier one that is still there is [ErrKeyExists].
func (s *Store) ReplaceKey(tokenID int64, current, next, earlier string) error {
	err := s.write(func(tx *sql.Tx) error {
		there, err := readRows(tx, tokenID, earlier)
		if err != nil {
			return err
		}
		if len(there) > 0 {
			return ErrKeyExists
		}
		if err := relabel(tx, tokenID, current, earlier); err != nil {
			return err
		}
		return relabel(tx, tokenID, next, current)
	})
	if err != nil {
		return fmt.Errorf("cannot replace key %q by %q: %w", current, next, err)
	}
	return nil
}

// relabel writes both rows of a pair anew, in their places: the label is inside them.
func relabel(tx *sql.Tx, tokenID int64, from, to string) error {
	rows, err := readRows(tx, tokenID, from)
	if err != nil {
		return err
	}
	keys, err := pairs(rows)
	if err != nil {
		return err
	}
	if len(keys) != 1 || keys[0].Rows != BothRows {
		return ErrNoKey
	}
	key := keys[0]
	key.Label = to
	private, public, err := key.encode()
	if err != nil {
		return err
	}
	for _, r := range rows {
		attrs := public
		if r.class == classPrivate {
			attrs = private
		}
		if _, err := tx.Exec(`UPDATE tobjects SET attrs = ? WHERE id = ?`, attrs, r.rowID); err != nil {
			return err
		}
	}
	return nil
}

// RemoveToken removes a token with all its keys, in one transaction; none is
// [ErrNoToken]. The keys in the TPM are the caller's, and so is a store that is empty
// then ([RemoveStore]).
func (s *Store) RemoveToken(label string) error {
	err := s.write(func(tx *sql.Tx) error {
		var id int64
		if err := tx.QueryRow(`SELECT id FROM tokens WHERE label = ?`, label).Scan(&id); err != nil {
			if errors.Is(err, sql.ErrNoRows) {
				return ErrNoToken
			}
			return err
		}
		// Foreign keys are off, as they are in the library.
		for _, text := range []string{`DELETE FROM tobjects WHERE tokid = ?`, `DELETE FROM sealobjects WHERE tokid = ?`, `DELETE FROM tokens WHERE id = ?`} {
			if _, err := tx.Exec(text, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot remove token %q: %w", label, err)
	}
	return nil
}

// write runs f in one transaction, under the library's lock as well, so that no other
// process migrates the store by a copy meanwhile.
func (s *Store) write(f func(*sql.Tx) error) error {
	if s.mode != ReadWrite {
		return errors.New("the store is open for reading only")
	}
	if s.schema == 0 {
		return ErrNoToken
	}
	unlock, err := lock(s.path)
	if err != nil {
		return err
	}
	defer unlock()
	tx, err := s.db.Begin()
	if err != nil {
		return sqliteError(err)
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		return sqliteError(err)
	}
	return sqliteError(tx.Commit())
}

// blob and text turn what is empty here into the NULL that it was in the store.
func blob(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}

func text(s string) any {
	if s == "" {
		return nil
	}
	return s
}
