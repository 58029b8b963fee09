package main

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goreleaser/nfpm/v2/files"
	"go.yaml.in/yaml/v3"
)

const twoDocuments = `# first
---
name: one
arch: all
depends:
  - two (= ${version})
contents:
  - src: documents.go
    dst: /usr/share/one/documents.go
    file_info: {mode: 0644}
---
name: two
arch: ${arch}
contents:
  - src: ${bin}/main.go
    dst: /usr/bin/two
    file_info: {mode: 0755}
`

func TestDocumentsAreSplitAndExpanded(t *testing.T) {
	documents, err := splitDocuments("test.yaml", []byte(twoDocuments))
	if err != nil {
		t.Fatal(err)
	}
	if len(documents) != 2 {
		t.Fatalf("%d documents, want 2", len(documents))
	}
	one, two := documents[0], documents[1]
	if !one.independent() || two.independent() {
		t.Errorf("independent of the architecture: one %t, two %t; want true, false", one.independent(), two.independent())
	}
	v := variables{"version": "1.2~rc1", "arch": "armhf", "bin": "."}
	info, err := one.info(v)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"two (= 1.2~rc1)"}; !slices.Equal(info.Depends, want) {
		t.Errorf("depends: %q, want %q", info.Depends, want)
	}
	if info, err = two.info(v); err != nil {
		t.Fatal(err)
	}
	if c := info.Contents[0]; info.Arch != "armhf" || c.Source != "./main.go" || c.FileInfo.Mode != 0o755 {
		t.Errorf("arch %s, source %s, mode %o", info.Arch, c.Source, c.FileInfo.Mode)
	}
	// The document itself is as it was, for the next architecture.
	if got := two.value("arch"); got != "${arch}" {
		t.Errorf("arch became %s", got)
	}
}

func TestBadDocuments(t *testing.T) {
	for _, c := range []struct{ yaml, want string }{
		{"arch: all\n", "has no name"},
		{"- a list\n", "has no name"},
		{"name: a\narch: amd64\n", "must be all or ${arch}"},
		{"name: a\narch: all\n---\nname: a\narch: all\n", "two documents"},
		{"name: [\n", "cannot read test.yaml"},
	} {
		if _, err := splitDocuments("test.yaml", []byte(c.yaml)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want %q", c.yaml, err, c.want)
		}
	}
	for _, c := range []struct{ yaml, want string }{
		{"name: a\narch: all\ndepends:\n  - b (= ${verzion})\n", "test.yaml:4: ${verzion} is not known"},
		{"name: a\narch: all\ndependz: []\n", "dependz"},
		{"name: a\narch: all\ncontents:\n  - {src: main.go, dst: /usr/share/a}\n", "no file_info.mode"},
	} {
		documents, err := splitDocuments("test.yaml", []byte(c.yaml))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := documents[0].info(variables{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want %q", c.yaml, err, c.want)
		}
	}
}

// TestRealDocuments: what nfpm.yaml names is there, as far as no build makes it.
func TestRealDocuments(t *testing.T) {
	t.Chdir("../..")
	documents, err := readDocuments("nfpm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	made := regexp.MustCompile(`\$\{(bin|build)\}`)
	var names []string
	for _, d := range documents {
		names = append(names, d.name)
		var sources []string
		visit(d.node, func(key, value string) {
			if key == "src" {
				sources = append(sources, value)
			}
		})
		for _, s := range sources {
			if name, ok := strings.CutPrefix(s, "${build}/man/"); ok {
				s = "debian/man/" + strings.TrimSuffix(name, ".gz") + ".scd"
			}
			if name, ok := strings.CutPrefix(s, "${bin}/"); ok && !slices.ContainsFunc(programs, func(p program) bool { return p.name == name }) {
				t.Errorf("%s: nobody makes %s", d.name, s)
			}
			if made.MatchString(s) {
				continue
			}
			if _, err := os.Stat(s); err != nil {
				t.Errorf("%s: %v", d.name, err)
			}
		}
	}
	// What debian/ has for a package is lost where its name has a slip of the hand.
	entries, err := os.ReadDir("debian")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name, suffix, _ := strings.Cut(e.Name(), ".")
		if strings.HasPrefix(name, "tpm2cloud") && suffix != "toml" && !slices.Contains(names, name) {
			t.Errorf("debian/%s is of no package in nfpm.yaml", e.Name())
		}
	}
	// Each source of a manual page is in a package.
	text, err := os.ReadFile("nfpm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("debian/man/*.scd")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no manual pages: %v", err)
	}
	for _, p := range pages {
		if page := strings.TrimSuffix(filepath.Base(p), ".scd") + ".gz"; !strings.Contains(string(text), "${build}/man/"+page) {
			t.Errorf("%s is in no package", p)
		}
	}
	// So is each file of an example.
	err = filepath.WalkDir("debian/examples", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.Contains(string(text), "src: "+name+"\n    dst: /usr/share/doc/tpm2cloud/examples/"+strings.TrimPrefix(name, "debian/examples/")+"\n") {
			t.Errorf("%s is in no package", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// A program comes with its page and its completion.
	for _, d := range documents {
		sources := map[string]bool{}
		visit(d.node, func(key, value string) { sources[value] = sources[value] || key == "src" })
		for source := range sources {
			name, ok := strings.CutPrefix(source, "${bin}/")
			if ok && !sources["${build}/man/"+name+".8.gz"] && !sources["${build}/man/"+name+".1.gz"] {
				t.Errorf("%s has %s without its page", d.name, source)
			}
			if ok && !sources["${build}/completions/"+name] {
				t.Errorf("%s has %s without its completion", d.name, source)
			}
		}
	}
	// Each file of systemd/ is in a package.
	entries, err = os.ReadDir("systemd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.Contains(string(text), "src: systemd/"+e.Name()+"\n") {
			t.Errorf("systemd/%s is in no package", e.Name())
		}
	}
}

// visit calls f for each pair of texts.
func visit(node *yaml.Node, f func(key, value string)) {
	for i, child := range node.Content {
		if i%2 == 1 && node.Kind == yaml.MappingNode {
			f(node.Content[i-1].Value, child.Value)
		}
		visit(child, f)
	}
}

func TestSnippets(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"postinst-sysusers":          "sysusers #CONFILE_BASENAME#\n",
		"postinst-init-tmpfiles":     "tmpfiles #TMPFILES#\n",
		"postinst-systemd-enable":    "enable #UNITFILE#\n",
		"postrm-systemd":             "purge #UNITFILES#\n",
		"postrm-systemd-reload-only": "reload\n",
		"with.target":                "[Unit]\n[Install]\nWantedBy=multi-user.target\n",
		"without.service":            "[Service]\n# [Install]\n",
	} {
		write(t, filepath.Join(dir, name), text)
	}
	content := func(destination, source string) *files.Content {
		return &files.Content{Source: filepath.Join(dir, source), Destination: destination, Type: files.TypeFile}
	}
	snippets, err := snippetsFor(files.Contents{
		content("/usr/lib/systemd/system/with.target", "with.target"),
		content("/usr/lib/systemd/system/without.service", "without.service"),
		content("/usr/lib/tmpfiles.d/t.conf", ""),
		content("/usr/lib/sysusers.d/u.conf", ""),
		content("/etc/x", ""),
	}, dir)
	if err != nil {
		t.Fatal(err)
	}
	var postinst, postrm string
	for _, s := range snippets {
		switch s.script {
		case "postinst":
			postinst += s.text
		case "postrm":
			postrm += s.text
		default:
			t.Errorf("a part of %s", s.script)
		}
	}
	if want := "sysusers u.conf\ntmpfiles t.conf\nenable 'with.target'\n" + daemonReload; postinst != want {
		t.Errorf("postinst:\n%s\nwant:\n%s", postinst, want)
	}
	if want := "purge 'with.target'\nreload\n"; postrm != want {
		t.Errorf("postrm:\n%s\nwant:\n%s", postrm, want)
	}
	if none, err := snippetsFor(files.Contents{content("/usr/bin/x", "")}, dir); err != nil || len(none) != 0 {
		t.Errorf("parts for a package that needs none: %v, %v", none, err)
	}

	// A part that asks for more than is known here.
	write(t, filepath.Join(dir, "postinst-sysusers"), "#CONFILE_BASENAME# #NEW#\n")
	if _, err := snippetsFor(files.Contents{content("/usr/lib/sysusers.d/u.conf", "")}, dir); err == nil || !strings.Contains(err.Error(), "#NEW#") {
		t.Errorf("error %v, want one about #NEW#", err)
	}
	if _, err := snippetsFor(files.Contents{content("/usr/lib/sysusers.d/u.conf", "")}, "nowhere"); err == nil || !strings.Contains(err.Error(), "debhelper") {
		t.Errorf("error %v, want one that names debhelper", err)
	}
}

// TestNothingIsStarted: of debhelper's parts only those are used that start,
// stop and restart nothing. They are Debian's, and may change.
func TestNothingIsStarted(t *testing.T) {
	if _, err := os.Stat(autoscripts); err != nil {
		t.Skip("debhelper is not installed: scripts/deps")
	}
	t.Chdir("../..")
	documents, err := readDocuments("nfpm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	harmful := regexp.MustCompile(`deb-systemd-invoke|systemctl .*(start|stop|isolate)|userdel|deluser|--now`)
	scripts := 0
	for _, d := range documents {
		var contents files.Contents
		visit(d.node, func(key, value string) {
			if key == "dst" {
				contents = append(contents, &files.Content{Destination: value, Source: "systemd/" + filepath.Base(value), Type: files.TypeFile})
			}
		})
		snippets, err := snippetsFor(contents, autoscripts)
		if err != nil {
			t.Errorf("%s: %v", d.name, err)
		}
		text := ""
		for _, s := range snippets {
			text += s.text
		}
		own, err := filepath.Glob("debian/" + d.name + ".p*")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range own {
			text += read(t, name)
		}
		if text != "" {
			scripts++
		}
		if found := harmful.FindString(text); found != "" {
			t.Errorf("%s: a maintainer script has %q", d.name, found)
		}
	}
	if scripts < 5 {
		t.Errorf("only %d packages with scripts", scripts)
	}
}

func TestInsert(t *testing.T) {
	got, err := insert("#!/bin/sh\n#DEBHELPER#\nexit 0\n", "costs $1 ${2}\n")
	if want := "#!/bin/sh\ncosts $1 ${2}\nexit 0\n"; err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	for _, bad := range []string{"#!/bin/sh\n", "#DEBHELPER#\n#DEBHELPER#\n", " #DEBHELPER#\n"} {
		if _, err := insert(bad, ""); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestArchive(t *testing.T) {
	members := []member{{"debian-binary", strings.Repeat("0", 32), []byte("2.0\n")}, {"odd", strings.Repeat("1", 32), []byte("abc")}}
	var b bytes.Buffer
	if err := writeArchive(&b, members); err != nil {
		t.Fatal(err)
	}
	got, err := readArchive(b.Bytes())
	if err != nil || len(got) != 2 || got[1].name != "odd" || string(got[1].data) != "abc" || got[0].rest != members[0].rest {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "!<arch>", "!<arch>\nshort", b.String()[:b.Len()-3]} {
		if _, err := readArchive([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestRoots(t *testing.T) {
	pemFile, derFile := certificate(t, "Maker TPM Root CA 1", true), certificate(t, "", true)
	const dir = "./usr/share/gems/lib/tpm/certificates/"
	whole := map[string][]byte{
		dir + "Maker/RootCA/one.crt":                    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pemFile}),
		dir + "Other/RootCA/two.cer":                    derFile,
		dir + "Maker/other/not.crt":                     []byte("no root"),
		"./usr/share/doc/" + rootsSource + "/copyright": []byte("theirs"),
	}
	roots, copyright, err := readRoots(archive(t, whole))
	if err != nil {
		t.Fatal(err)
	}
	if copyright != "theirs" || len(roots) != 2 {
		t.Errorf("copyright %q, %d certificates", copyright, len(roots))
	}
	for name, der := range roots {
		if !regexp.MustCompile(`^(maker_maker-tpm-root-ca-1|other_unit)_[0-9a-f]{8}\.pem$`).MatchString(name) {
			t.Errorf("name %s", name)
		}
		if !bytes.Equal(der, pemFile) && !bytes.Equal(der, derFile) {
			t.Errorf("%s is another certificate", name)
		}
	}
	for why, change := range map[string]map[string][]byte{
		"two.cer":         {dir + "Other/RootCA/two.cer": []byte("garbage")},
		"no CA's":         {dir + "Other/RootCA/two.cer": certificate(t, "leaf", false)},
		"no certificates": {dir + "Other/RootCA/two.cer": nil, dir + "Maker/RootCA/one.crt": nil},
	} {
		bad := map[string][]byte{}
		for name, data := range whole {
			bad[name] = data
		}
		for name, data := range change {
			if bad[name] = data; data == nil {
				delete(bad, name)
			}
		}
		if _, _, err := readRoots(archive(t, bad)); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("error %v, want %q", err, why)
		}
	}
}

func certificate(t *testing.T, name string, ca bool) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name, OrganizationalUnit: []string{"Unit"}},
		NotAfter: time.Now().Add(time.Hour), IsCA: ca, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func archive(t *testing.T, members map[string][]byte) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, data := range members {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(data)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestLicences(t *testing.T) {
	const mit = "The MIT License\n\nCopyright (c) 2020 A. Author\n\nPermission is hereby granted, free of charge, to any person\nobtaining a copy of\n\n\tthis\n"
	const apache = "Apache License\n   Version 2.0, January 2004\n\n   Copyright [yyyy] [name of copyright owner]\n"
	for _, c := range []struct{ text, notice, id, want string }{
		{mit, "", "MIT", "Files: m@v1/*\nCopyright: 2020 A. Author\nLicense: Expat\n The MIT License\n .\n Copyright"},
		{apache, "from Somebody", "Apache-2.0", "Files: m@v1/*\nCopyright: the authors of m\nLicense: Apache-2.0\n On Debian systems"},
		{apache, "from Somebody", "Apache-2.0", " .\n from Somebody\n"},
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "LICENSE"), c.text)
		if c.notice != "" {
			write(t, filepath.Join(dir, "NOTICE"), c.notice)
		}
		l, err := licenceIn(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.stanza("m@v1/*", "m"); l.id != c.id || !strings.Contains(got, c.want) {
			t.Errorf("%s:\n%s\nwant %s with:\n%s", l.id, got, c.id, c.want)
		}
	}
	dir := t.TempDir()
	if _, err := licenceIn(dir); err == nil {
		t.Error("a module without a licence was accepted")
	}
	write(t, filepath.Join(dir, "LICENSE"), "You may look, and not touch.")
	if _, err := licenceIn(dir); err == nil {
		t.Error("an unknown licence was accepted")
	}
}

// TestTags: the packages' programs are those of "make build".
func TestTags(t *testing.T) {
	if makefile := read(t, "../../Makefile"); !strings.Contains(makefile, "\nTAGS := "+tags+"\n") {
		t.Errorf("the Makefile has other tags than %s", tags)
	}
}

func TestRelease(t *testing.T) {
	if _, err := exec.LookPath("dpkg-parsechangelog"); err != nil {
		t.Skip("dpkg-dev is not installed: scripts/deps")
	}
	t.Chdir("../..")
	r, err := readRelease()
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^[0-9][0-9A-Za-z.~+]*$`).MatchString(r.Version) || r.Maintainer == "" || r.Time.IsZero() {
		t.Errorf("%+v", r)
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestBuiltFor: a package is left out where its program is not made, and no
// other one is.
func TestBuiltFor(t *testing.T) {
	for _, c := range []struct {
		name, arch string
		want       bool
	}{
		{"tpm2cloud-azure", "amd64", true},
		{"tpm2cloud-azure", "arm64", true},
		{"tpm2cloud-azure", "armhf", false},
		{"tpm2cloud-lab", "armhf", true},
		{"tpm2cloud-common", "all", true},
	} {
		if got := (document{name: c.name}).builtFor(c.arch); got != c.want {
			t.Errorf("%s for %s: %t", c.name, c.arch, got)
		}
	}
}
