package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

const (
	// credentialsDir is where a run by hand finds what systemd gives a unit.
	credentialsDir = "/etc/tpm2cloud/credentials"
	// credentialsPrefix is what systemd puts before the names of the files there
	// when it loads the directory (LoadCredential=tpm2cloud:DIRECTORY).
	credentialsPrefix = "tpm2cloud_"

	maxSecret = 64 << 10
)

// ReadSecret reads the secret that s names. One newline at the end is cut,
// because editors and echo put it there.
//
// An error tells which key asked for the secret and what is wrong with the
// file; it never holds a byte of what was read.
func (c *Config) ReadSecret(s Secret) (string, error) {
	value, err := c.readSecret(s)
	if err == nil {
		return value, nil
	}
	class, hint := step.Configuration, ""
	switch {
	case errors.Is(err, fs.ErrPermission) && !filepath.IsAbs(string(s)) && os.Getenv("CREDENTIALS_DIRECTORY") != "":
		// The user of a unit sees what systemd has loaded, not where from.
		path, _ := c.secretPath(s)
		err = fmt.Errorf("cannot read the secret %q: the unit has no such credential", string(s))
		hint = fmt.Sprintf("write it to %s with mode 0600; the unit loads what is there at its start", path)
	case errors.Is(err, fs.ErrPermission):
		class, hint = step.Permission, "run it as root, or as the user who owns the secret"
	case errors.Is(err, fs.ErrNotExist):
		hint = "give the secret to the unit (systemd-creds encrypt, LoadCredentialEncrypted=), or write it to the file with mode 0600"
	}
	if key := c.keyOf(s); key != "" {
		err = c.at.problem(key, err)
	}
	return "", step.As(class, hint, err)
}

func (c *Config) readSecret(s Secret) (string, error) {
	if s == "" {
		return "", errors.New("cannot read a secret: none is named")
	}
	path, mode := c.secretPath(s)
	value, err := readPrivate(path, mode)
	if err != nil {
		return "", fmt.Errorf("cannot read the secret %s: %w", path, err)
	}
	value = strings.TrimSuffix(value, "\n")
	switch {
	case value == "":
		return "", fmt.Errorf("cannot use the secret %s: it is empty", path)
	case strings.ContainsAny(value, "\x00\r\n"):
		return "", fmt.Errorf("cannot use the secret %s: it has a line end or a NUL in it; allowed: one line", path)
	}
	return value, nil
}

// SecretFile is where the secret lies that s names, as far as that is a file of
// somebody's making: what systemd has loaded of it is a copy.
func (c *Config) SecretFile(s Secret) string {
	if filepath.IsAbs(string(s)) {
		return c.Path(string(s))
	}
	return c.Path(filepath.Join(credentialsDir, string(s)))
}

// secretPath finds the file of a secret, and the widest mode that it may have.
func (c *Config) secretPath(s Secret) (path string, mode fs.FileMode) {
	if filepath.IsAbs(string(s)) {
		return c.SecretFile(s), 0o700
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		for _, prefix := range []string{"", credentialsPrefix} {
			path := filepath.Join(dir, prefix+string(s))
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				// systemd lets the unit's user in by an ACL, whose mask shows as the
				// group's bits.
				return path, 0o750
			}
		}
	}
	return c.SecretFile(s), 0o700
}

// readPrivate reads a small file that nobody else may read, and that nobody
// else could have put there. It looks at the open file and not at the name,
// which may mean another file by then.
func readPrivate(path string, mode fs.FileMode) (string, error) {
	// O_NONBLOCK: a pipe in the file's place must not hold the run.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return "", errors.New("this is a symbolic link; allowed: a regular file")
	}
	if err != nil {
		return "", cause(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", cause(err)
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("this is not a file (mode %s); allowed: a regular file", info.Mode())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return "", fmt.Errorf("its owner is user %d; allowed: root and user %d", st.Uid, os.Geteuid())
	}
	if found := info.Mode().Perm(); found&^mode != 0 {
		return "", fmt.Errorf("its mode is %04o, which lets others read or change it; allowed: %04o", found, mode&0o640)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", cause(err)
	}
	if len(data) > maxSecret {
		return "", fmt.Errorf("it is longer than %d bytes", maxSecret)
	}
	return string(data), nil
}

// cause leaves out the path, which the caller's text has already.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// Secrets are all secrets that the configuration names.
func (c *Config) Secrets() (list []Secret) {
	fields := schema(c)
	for _, key := range fields.keys {
		if v, ok := fields.at[key].Interface().(Secret); ok && v != "" {
			list = append(list, v)
		}
	}
	return list
}

// keyOf is the first key that names s.
func (c *Config) keyOf(s Secret) string {
	fields := schema(c)
	for _, key := range fields.keys {
		if v, ok := fields.at[key].Interface().(Secret); ok && v != "" && v == s {
			return key
		}
	}
	return ""
}
