package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

const (
	rootsSource = "ruby-tpm-key-attestation"
	rootsDir    = "/usr/share/tpm2cloud/ek-roots"
)

// rootsPackage is the package of Debian that the vendors' certificates are of.
type rootsPackage struct {
	version   string
	sha256    string
	copyright string
	count     int
}

var (
	uriLine    = regexp.MustCompile(`^'[^']*' (\S+) \d+ SHA256:([0-9a-f]{64})$`)
	rootMember = regexp.MustCompile(`/lib/tpm/certificates/([^/]+)/RootCA/[^/]+$`)
	notInName  = regexp.MustCompile(`[^a-z0-9.]+`)
)

// makeRoots gets that package and writes its certificates to dir.
func makeRoots(cache, dir string) (rootsPackage, error) {
	file, r, err := fetchRoots(cache)
	if err != nil {
		return r, err
	}
	data, err := output("dpkg-deb", "--fsys-tarfile", file)
	if err != nil {
		return r, err
	}
	certificates, copyright, err := readRoots(bytes.NewReader(data))
	if err != nil {
		return r, fmt.Errorf("cannot take the certificates from %s: %w", filepath.Base(file), err)
	}
	r.copyright, r.count = copyright, len(certificates)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return r, err
	}
	for name, der := range certificates {
		data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return r, err
		}
	}
	return r, nil
}

// fetchRoots downloads the package, unless it is there. Its hash is that of
// apt's lists, which are signed.
func fetchRoots(cache string) (string, rootsPackage, error) {
	var r rootsPackage
	out, err := output("apt-get", "-qq", "--print-uris", "download", rootsSource)
	if err != nil {
		return "", r, fmt.Errorf("cannot find the package %s: apt-get update, or add a source that has it: %w", rootsSource, err)
	}
	found := uriLine.FindStringSubmatch(strings.TrimSpace(string(out)))
	if found == nil {
		return "", r, fmt.Errorf("cannot find the package %s: apt-get --print-uris says %q", rootsSource, out)
	}
	r.sha256 = found[2]
	file := filepath.Join(cache, found[1])
	if hashOf(file) != r.sha256 {
		if err := os.MkdirAll(cache, 0o755); err != nil {
			return "", r, err
		}
		// A user of apt's own could not write there.
		cmd := exec.Command("apt-get", "-qq", "-o", "APT::Sandbox::User=", "download", rootsSource)
		cmd.Dir = cache
		if _, err := outputOf(cmd); err != nil {
			return "", r, fmt.Errorf("cannot download %s: %w", rootsSource, err)
		}
		if hashOf(file) != r.sha256 {
			return "", r, fmt.Errorf("cannot use %s: its hash is not the one in apt's lists", file)
		}
	}
	version, err := output("dpkg-deb", "--field", file, "Version")
	r.version = strings.TrimSpace(string(version))
	return file, r, err
}

func hashOf(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// readRoots takes the certificates, by file name, and the copyright out of the
// package's files. Each certificate must be one that the programs can read.
func readRoots(archive io.Reader) (map[string][]byte, string, error) {
	certificates := map[string][]byte{}
	var copyright string
	for reader := tar.NewReader(archive); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, "", err
		}
		member := rootMember.FindStringSubmatch(header.Name)
		isCopyright := path.Clean("/"+header.Name) == "/usr/share/doc/"+rootsSource+"/copyright"
		if header.Typeflag != tar.TypeReg || member == nil && !isCopyright {
			continue
		}
		data, err := io.ReadAll(reader)
		if err != nil {
			return nil, "", err
		}
		if isCopyright {
			copyright = string(data)
			continue
		}
		if block, _ := pem.Decode(data); block != nil {
			data = block.Bytes
		}
		certificate, err := x509.ParseCertificate(data)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", header.Name, err)
		}
		if !certificate.IsCA {
			return nil, "", fmt.Errorf("%s is no CA's certificate", header.Name)
		}
		name := rootName(member[1], certificate)
		if certificates[name] != nil && !bytes.Equal(certificates[name], certificate.Raw) {
			return nil, "", fmt.Errorf("two certificates would have the name %s", name)
		}
		certificates[name] = certificate.Raw
	}
	if len(certificates) == 0 || copyright == "" {
		return nil, "", errors.New("it has no certificates, or no copyright file")
	}
	return certificates, copyright, nil
}

// rootName is made of what a person looks for, and of the certificate's hash,
// because a vendor may use a name twice.
func rootName(vendor string, certificate *x509.Certificate) string {
	name := certificate.Subject.CommonName
	if name == "" {
		name = strings.Join(certificate.Subject.OrganizationalUnit, " ")
	}
	clean := strings.Trim(notInName.ReplaceAllString(strings.ToLower(name), "-"), "-.")
	sum := sha256.Sum256(certificate.Raw)
	return fmt.Sprintf("%s_%s_%x.pem", strings.ToLower(vendor), clean, sum[:4])
}

// stanza is the part of the copyright file that is about the certificates.
func (r rootsPackage) stanza() string {
	return fmt.Sprintf("Files: %s/*\nCopyright: the vendors of the TPMs\nLicense: as-in-%[2]s\n"+
		" These certificates are those of Debian's package %[2]s %s,\n"+
		" in another form. Its copyright file says:\n .\n%s",
		strings.TrimPrefix(rootsDir, "/"), rootsSource, r.version, indented(strings.TrimSpace(r.copyright)))
}
