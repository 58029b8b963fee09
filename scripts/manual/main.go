// Command manual makes what a reader, a shell and an administrator get of this
// project, of one source each:
//
//	the configuration file and tpm2cloud.toml(5)   of keys.toml, and of the keys,
//	    defaults and words that pkg/config has
//	all manual pages                               of debian/man/*.scd, by scdoc
//	bash completion                                of the synopses and options in there
//
// The tests hold the manual pages against what the programs say of themselves
// (--help): a verb or a flag is in both or in none.
//
// usage: manual generate   writes debian/tpm2cloud.toml, which is kept in git
//
//	manual make DIR   writes DIR/man/PAGE and DIR/completions/PROGRAM
//
// It runs in the root of the repository. SOURCE_DATE_EPOCH is the pages' date.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

const (
	conffile = "debian/tpm2cloud.toml"
	sources  = "debian/man"
)

func main() {
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 1 && args[0] == "generate":
		err = generate()
	case len(args) == 2 && args[0] == "make":
		err = makeAll(args[1])
	default:
		fmt.Fprintln(os.Stderr, "usage: manual generate | manual make DIR")
		os.Exit(64)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "manual: %v\n", err)
		os.Exit(1)
	}
}

func generate() error {
	m, err := readKeys(keysText)
	if err != nil {
		return err
	}
	return os.WriteFile(conffile, []byte(m.conffile()), 0o644)
}

func makeAll(dir string) error {
	files, err := filepath.Glob(filepath.Join(sources, "*.scd"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("there are no manual pages in %s: this must run in the root of the repository", sources)
	}
	for _, sub := range []string{"man", "completions"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	for _, file := range files {
		if err := makePage(file, dir); err != nil {
			return fmt.Errorf("cannot make the manual page of %s: %w", file, err)
		}
	}
	return nil
}

// makePage makes a page, and where it is a program's the completion.
func makePage(file, dir string) error {
	text, err := readSource(file)
	if err != nil {
		return err
	}
	page, err := scdoc(text)
	if err != nil {
		return err
	}
	name := pageName(file)
	if err := os.WriteFile(filepath.Join(dir, "man", name), page, 0o644); err != nil {
		return err
	}
	program, ok := programOf(name)
	if !ok {
		return nil
	}
	c, err := readCommand(text)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "completions", program), []byte(c.completion()), 0o644)
}
