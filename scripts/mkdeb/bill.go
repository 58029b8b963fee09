package main

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/files"
)

// The bill of material is SPDX 2.3 in JSON: the package, its files with their
// hashes, the Go modules in its programs, and the packages that it needs.

type bill struct {
	SPDXVersion   string         `json:"spdxVersion"`
	DataLicense   string         `json:"dataLicense"`
	SPDXID        string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Namespace     string         `json:"documentNamespace"`
	Creation      creation       `json:"creationInfo"`
	Packages      []billPackage  `json:"packages"`
	Files         []billFile     `json:"files,omitempty"`
	Relationships []relationship `json:"relationships"`
}

type creation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type billPackage struct {
	SPDXID           string            `json:"SPDXID"`
	Name             string            `json:"name"`
	VersionInfo      string            `json:"versionInfo,omitempty"`
	FileName         string            `json:"packageFileName,omitempty"`
	Supplier         string            `json:"supplier,omitempty"`
	DownloadLocation string            `json:"downloadLocation"`
	FilesAnalyzed    bool              `json:"filesAnalyzed"`
	VerificationCode *verificationCode `json:"packageVerificationCode,omitempty"`
	Checksums        []checksum        `json:"checksums,omitempty"`
	LicenseConcluded string            `json:"licenseConcluded"`
	LicenseDeclared  string            `json:"licenseDeclared"`
	CopyrightText    string            `json:"copyrightText"`
	Comment          string            `json:"comment,omitempty"`
	ExternalRefs     []externalRef     `json:"externalRefs,omitempty"`
}

type verificationCode struct {
	Value string `json:"packageVerificationCodeValue"`
}

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type externalRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type billFile struct {
	SPDXID           string     `json:"SPDXID"`
	FileName         string     `json:"fileName"`
	Checksums        []checksum `json:"checksums"`
	LicenseConcluded string     `json:"licenseConcluded"`
	CopyrightText    string     `json:"copyrightText"`
}

type relationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

const noAssertion = "NOASSERTION"

// writeBill writes the bill of a package that has been built.
func (b *builder) writeBill(name string, info *nfpm.Info, m modules) error {
	deb, err := os.ReadFile(strings.TrimSuffix(name, ".spdx.json") + ".deb")
	if err != nil {
		return err
	}
	made, err := b.bill(info, m, sha256.Sum256(deb))
	if err != nil {
		return fmt.Errorf("cannot make the bill of material: %w", err)
	}
	return writeFile(name, func(f *os.File) error {
		e := json.NewEncoder(f)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(made)
	})
}

func (b *builder) bill(info *nfpm.Info, m modules, sum [32]byte) (*bill, error) {
	whole := fmt.Sprintf("%s_%s_%s", info.Name, info.Version, info.Arch)
	doc := &bill{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT", Name: whole,
		// It must be another one for each document, and need not exist.
		Namespace: fmt.Sprintf("https://spdx.org/spdxdocs/%s-%x", whole, sum[:16]),
		Creation:  creation{b.Time.Format(time.RFC3339), []string{"Tool: mkdeb", "Organization: tpm2cloud"}},
	}
	const subject = "SPDXRef-Package"
	own := billPackage{
		SPDXID: subject, Name: info.Name, VersionInfo: info.Version, FileName: whole + ".deb",
		Supplier: "Organization: " + b.Maintainer, DownloadLocation: noAssertion, FilesAnalyzed: true,
		Checksums:        []checksum{{"SHA256", hex.EncodeToString(sum[:])}},
		LicenseConcluded: noAssertion, LicenseDeclared: info.License, CopyrightText: noAssertion,
		ExternalRefs: packageURL("pkg:deb/tpm2cloud/%s@%s?arch=%s", info.Name, info.Version, info.Arch),
	}
	doc.relate("SPDXRef-DOCUMENT", "DESCRIBES", subject)
	if err := doc.addFiles(&own, info.Contents); err != nil {
		return nil, err
	}
	doc.Packages = append(doc.Packages, own)
	if err := doc.addModules(subject, m); err != nil {
		return nil, err
	}
	doc.addDependencies(subject, info)
	if strings.HasPrefix(info.Name, "tpm2cloud-ek-roots") {
		doc.add(subject, "GENERATED_FROM", billPackage{
			SPDXID: "SPDXRef-Source-" + rootsSource, Name: rootsSource, VersionInfo: b.roots.version,
			Checksums: []checksum{{"SHA256", b.roots.sha256}}, LicenseDeclared: noAssertion,
			ExternalRefs: packageURL("pkg:deb/debian/%s@%s", rootsSource, b.roots.version),
		})
	}
	return doc, nil
}

func (doc *bill) addFiles(own *billPackage, contents files.Contents) error {
	var all []string
	for _, c := range contents {
		if c.Type != files.TypeFile && c.Type != files.TypeConfig && c.Type != files.TypeConfigNoReplace {
			continue
		}
		data, err := os.ReadFile(c.Source)
		if err != nil {
			return err
		}
		one, other := sha1.Sum(data), sha256.Sum256(data)
		all = append(all, hex.EncodeToString(one[:]))
		f := billFile{
			SPDXID: fmt.Sprintf("SPDXRef-File-%d", len(doc.Files)+1), FileName: "." + c.Destination,
			// SPDX 2.3 asks for SHA-1.
			Checksums:        []checksum{{"SHA1", hex.EncodeToString(one[:])}, {"SHA256", hex.EncodeToString(other[:])}},
			LicenseConcluded: noAssertion, CopyrightText: noAssertion,
		}
		doc.Files = append(doc.Files, f)
		doc.relate(own.SPDXID, "CONTAINS", f.SPDXID)
	}
	// As SPDX 2.3 has it: the hash of the files' hashes, sorted.
	slices.Sort(all)
	sum := sha1.Sum([]byte(strings.Join(all, "")))
	own.VerificationCode = &verificationCode{hex.EncodeToString(sum[:])}
	return nil
}

func (doc *bill) addModules(subject string, m modules) error {
	if m.golang != "" {
		doc.add(subject, "STATIC_LINK", billPackage{
			SPDXID: "SPDXRef-Go-std", Name: "std", VersionInfo: m.golang, LicenseDeclared: "BSD-3-Clause",
			ExternalRefs: packageURL("pkg:golang/std@%s", m.golang),
		})
	}
	for _, module := range m.list {
		l, err := licenceIn(module.Dir)
		if err != nil {
			return err
		}
		doc.add(subject, "STATIC_LINK", billPackage{
			SPDXID: "SPDXRef-Go-" + identifier(module.Path), Name: module.Path, VersionInfo: module.Version,
			LicenseDeclared: l.id, Comment: "go.sum: " + module.Sum,
			ExternalRefs: packageURL("pkg:golang/%s@%s", module.Path, module.Version),
		})
	}
	return nil
}

// addDependencies has the packages that are needed, not their versions, which
// are those of the device.
func (doc *bill) addDependencies(subject string, info *nfpm.Info) {
	for _, relation := range info.Depends {
		// Of alternatives the first is meant, and the others are its other names.
		name, _, _ := strings.Cut(strings.Fields(relation)[0], ":")
		vendor := "debian"
		if strings.HasPrefix(name, "tpm2cloud") {
			vendor = "tpm2cloud"
		}
		doc.add(subject, "DEPENDS_ON", billPackage{
			SPDXID: "SPDXRef-Debian-" + identifier(name), Name: name, LicenseDeclared: noAssertion,
			Comment: "Depends: " + relation, ExternalRefs: packageURL("pkg:deb/%s/%s", vendor, name),
		})
	}
}

func (doc *bill) add(subject, how string, p billPackage) {
	p.DownloadLocation, p.LicenseConcluded, p.CopyrightText = noAssertion, noAssertion, noAssertion
	doc.Packages = append(doc.Packages, p)
	doc.relate(subject, how, p.SPDXID)
}

func (doc *bill) relate(element, how, related string) {
	doc.Relationships = append(doc.Relationships, relationship{element, how, related})
}

func packageURL(format string, args ...any) []externalRef {
	return []externalRef{{"PACKAGE-MANAGER", "purl", fmt.Sprintf(format, args...)}}
}

// identifier makes a name fit for an SPDXID.
func identifier(name string) string {
	return regexp.MustCompile(`[^A-Za-z0-9.-]`).ReplaceAllString(name, "-")
}
