package cloud

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Accounts are the credentials of a lab, random for each directory and kept in accounts.json, so
// that a restart of the lab leaves the configuration of its clients valid.
type Accounts struct {
	Username string `json:"username"`
	Password string `json:"password"`
	Secret   string `json:"secret"`
	IDScope  string `json:"id_scope"`
}

func openAccounts(dir string) (Accounts, error) {
	path := filepath.Join(dir, "accounts.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		a := Accounts{
			Username: "device",
			Password: rand.Text(),
			Secret:   rand.Text(),
			IDScope:  "0ne00" + rand.Text()[:6], // the form of real ones
		}
		return a, writeJSON(path, a, 0o600)
	}
	if err != nil {
		return Accounts{}, fmt.Errorf("cannot read the accounts: %w", err)
	}
	var a Accounts
	if err := json.Unmarshal(data, &a); err != nil {
		return Accounts{}, fmt.Errorf("cannot read the accounts: %s: %w", path, err)
	}
	if a.Username == "" || a.Password == "" || a.Secret == "" || a.IDScope == "" {
		return Accounts{}, fmt.Errorf("cannot read the accounts: %s lacks a field", path)
	}
	return a, nil
}
