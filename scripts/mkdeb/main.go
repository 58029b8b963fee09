// Command mkdeb builds the Debian packages that nfpm.yaml describes, one
// document a package.
//
// usage: mkdeb [--arch LIST] [--output DIR] [--work DIR]
//
// It runs in the root of the repository. The files of debian/ have the names
// and the meaning that debhelper gives them: changelog (version, maintainer,
// time), copyright, PACKAGE.postinst and the like with #DEBHELPER#,
// PACKAGE.lintian-overrides, PACKAGE.README.Debian, man/*.scd.
//
// Nothing that depends on the machine, the place or the time of the build goes
// into a package: the same sources make the same bytes.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
)

func main() {
	arches := flag.String("arch", strings.Join(architectures(), " "), "architectures of Debian, between spaces or commas")
	output := flag.String("output", "build/packages", "folder for packages and bills of material")
	work := flag.String("work", "build/mkdeb", "folder for what they are made of")
	flag.Parse()
	list := strings.FieldsFunc(*arches, func(r rune) bool { return r == ' ' || r == ',' })
	for _, a := range list {
		if _, ok := targets[a]; !ok {
			usage(fmt.Sprintf("%s is no architecture of ours; they are %s", a, strings.Join(architectures(), ", ")))
		}
	}
	if flag.NArg() > 0 {
		usage("unexpected argument " + flag.Arg(0))
	}
	if err := run(list, *output, *work); err != nil {
		fmt.Fprintf(os.Stderr, "mkdeb: %v\n", err)
		os.Exit(1)
	}
}

func usage(why string) {
	fmt.Fprintf(os.Stderr, "mkdeb: %s\n", why)
	os.Exit(64)
}

func run(arches []string, output, work string) error {
	r, err := readRelease()
	if err != nil {
		return err
	}
	documents, err := readDocuments("nfpm.yaml")
	if err != nil {
		return err
	}
	// What an earlier build left must not get into a package of this one.
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	if err := os.MkdirAll(output, 0o755); err != nil {
		return err
	}
	b := &builder{release: r, output: output, work: work}
	if err := makeManual(work, r); err != nil {
		return err
	}
	if b.roots, err = makeRoots("build/cache/mkdeb", filepath.Join(work, "ek-roots")); err != nil {
		return err
	}
	for _, arch := range append(slices.Clone(arches), "all") {
		if arch != "all" {
			say("compiling for %s", arch)
			if err := compile(arch, b.bin(arch), r); err != nil {
				return err
			}
		}
		for _, d := range documents {
			if d.independent() != (arch == "all") || !d.builtFor(arch) {
				continue
			}
			if err := b.build(d, arch); err != nil {
				return fmt.Errorf("cannot build %s for %s: %w", d.name, arch, err)
			}
		}
	}
	return nil
}

// builder makes packages of documents.
type builder struct {
	release
	output, work string
	roots        rootsPackage
}

func (b *builder) bin(arch string) string { return filepath.Join(b.work, arch, "bin") }

// build makes one package, and its bill of material beside it.
func (b *builder) build(d document, arch string) error {
	info, err := d.info(variables{"version": b.Version, "arch": arch, "build": b.work, "bin": b.bin(arch)})
	if err != nil {
		return err
	}
	b.common(info)
	modules, err := modulesOf(info.Contents)
	if err != nil {
		return err
	}
	own := filepath.Join(b.work, arch, d.name)
	if err := b.addDocumentation(info, modules, own); err != nil {
		return err
	}
	if err := addScripts(info, "debian", own); err != nil {
		return err
	}
	name := filepath.Join(b.output, deb.Default.ConventionalFileName(info))
	if err := writeFile(name, func(f *os.File) error { return writePackage(info, f) }); err != nil {
		return err
	}
	if err := b.writeBill(strings.TrimSuffix(name, ".deb")+".spdx.json", info, modules); err != nil {
		return err
	}
	say("%s", name)
	return removeOthers(name, fmt.Sprintf("%s_*_%s", info.Name, info.Arch))
}

// removeOthers removes earlier versions of a package: who takes all of the
// folder must not get two.
func removeOthers(name, pattern string) error {
	keep := strings.TrimSuffix(name, ".deb")
	for _, suffix := range []string{".deb", ".spdx.json"} {
		found, err := filepath.Glob(filepath.Join(filepath.Dir(name), pattern+suffix))
		if err != nil {
			return err
		}
		for _, other := range found {
			if other != keep+suffix {
				if err := os.Remove(other); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// common sets what is the same for all packages.
func (b *builder) common(info *nfpm.Info) {
	info.Version, info.VersionSchema = b.Version, "none"
	// Left over from the version that nfpm takes where a document has none.
	info.Prerelease, info.VersionMetadata = "", ""
	info.Maintainer = b.Maintainer
	info.MTime = b.Time
	info.Deb.Fields = map[string]string{"Source": "tpm2cloud"}
	if info.Priority == "" {
		info.Priority = "optional"
	}
}

// writeFile leaves either the whole file or none.
func writeFile(name string, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = write(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", name, err)
	}
	return os.Rename(f.Name(), name)
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }
