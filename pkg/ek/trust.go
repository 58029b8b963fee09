package ek

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// maxTrustFile bounds a file of a trust directory, in bytes. A bundle of all vendors' certificates has less than 1 MiB.
const maxTrustFile = 8 << 20

// Trust is what the operator trusts. The package comment says what that means.
type Trust struct {
	Anchors []*x509.Certificate // each once, in the order of directories and file names
	Missing []string            // directories that don't exist
	Ignored []string            // files whose names don't end like a certificate's
}

// Empty tells whether nothing is trusted, so that no certificate can be verified.
func (t *Trust) Empty() bool { return len(t.Anchors) == 0 }

// LoadTrust reads the certificates in the files below dirs whose names end in .pem, .crt, .cer or .der, each
// in PEM (any number of certificates) or DER (one). Other files are listed in Ignored. Symbolic links
// to files are followed, those to directories below dirs are not.
//
// A missing directory isn't an error, because each of the usual ones is optional. A file that can't be read, or that
// holds anything but certificates, is: a certificate that an operator believes to be trusted would be missing. All
// such files are named, and nothing is returned.
func LoadTrust(dirs ...string) (*Trust, error) {
	t := &Trust{}
	seen := make(map[string]bool)
	var errs []error
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			t.Missing = append(t.Missing, dir)
			continue
		case err != nil:
			errs = append(errs, fmt.Errorf("cannot read the trust directory: %w", err))
			continue
		case !info.IsDir():
			errs = append(errs, fmt.Errorf("cannot read the trust directory: %s is not a directory", dir))
			continue
		}
		fsys := os.DirFS(dir)
		err = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err // a directory that can't be listed
			}
			if d.IsDir() {
				return nil
			}
			full := filepath.Join(dir, filepath.FromSlash(name))
			if !hasCertificateName(name) {
				t.Ignored = append(t.Ignored, full)
				return nil
			}
			certs, err := loadFile(fsys, name)
			if err != nil {
				errs = append(errs, fmt.Errorf("cannot load the trusted certificates of %s: %w", full, err))
				return nil
			}
			for _, cert := range certs {
				if !seen[string(cert.Raw)] {
					seen[string(cert.Raw)] = true
					t.Anchors = append(t.Anchors, cert)
				}
			}
			return nil
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot read the trust directory %s: %w", dir, err))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return t, nil
}

func hasCertificateName(name string) bool {
	switch strings.ToLower(path.Ext(name)) {
	case ".pem", ".crt", ".cer", ".der":
		return true
	}
	return false
}

func loadFile(fsys fs.FS, name string) ([]*x509.Certificate, error) {
	// A link is followed here. What it leads to is looked at before it's opened: to open a FIFO would block.
	info, err := fs.Stat(fsys, name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxTrustFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxTrustFile {
		return nil, fmt.Errorf("it is larger than %d bytes", maxTrustFile)
	}
	return parseFile(data)
}

// parseFile parses PEM or DER. The name doesn't tell which: .crt and .cer are used for both.
func parseFile(data []byte) ([]*x509.Certificate, error) {
	const begin = "-----BEGIN "
	blocks := bytes.Count(data, []byte(begin))
	if blocks == 0 {
		cert, err := x509.ParseCertificate(data)
		if err != nil {
			return nil, fmt.Errorf("it is neither PEM nor the DER of a certificate: %w", err)
		}
		return []*x509.Certificate{cert}, nil
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a PEM block of type %q, which is not a certificate", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("its certificate number %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	// pem.Decode passes over a block that is damaged without a word.
	if len(certs) != blocks {
		return nil, fmt.Errorf("only %d of its %d PEM blocks could be decoded", len(certs), blocks)
	}
	return certs, nil
}
