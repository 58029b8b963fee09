package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// keysHere is the line of tpm2cloud.toml(5) in whose place the keys come.
const keysHere = "@KEYS@\n"

// readSource is the source of a page, whole.
func readSource(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	text := string(data)
	if strings.Contains(text, keysHere) {
		m, err := readKeys(keysText)
		if err != nil {
			return "", err
		}
		text = strings.Replace(text, keysHere, m.page(), 1)
	}
	return text, nil
}

// pageName is NAME.SECTION of .../NAME.SECTION.scd.
func pageName(file string) string { return strings.TrimSuffix(filepath.Base(file), ".scd") }

// programOf is the program that a page is of: those have section 1 or 8.
func programOf(page string) (string, bool) {
	if name, ok := strings.CutSuffix(page, ".1"); ok {
		return name, true
	}
	return strings.CutSuffix(page, ".8")
}

// scdoc makes a page of its source.
func scdoc(text string) ([]byte, error) {
	cmd := exec.Command("scdoc")
	cmd.Stdin = strings.NewReader(text)
	var page, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &page, &said
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("scdoc: %w %s", err, bytes.TrimSpace(said.Bytes()))
	}
	return tidy(page.Bytes()), nil
}

// What scdoc writes and mandoc warns of, and the same in better order: a paragraph
// that begins where an indentation ends begins behind it; one before a list is a
// space; one at the beginning or the end of a section, or before another one, has
// nothing in it.
var untidy = []struct {
	form *regexp.Regexp
	tidy string
}{
	{regexp.MustCompile(`(?m)^(\.PP?\n)(\.RE\n)`), "$2$1"},
	{regexp.MustCompile(`(?m)^\.PP?\n(\.RS )`), ".sp\n$1"},
	{regexp.MustCompile(`(?m)^\.PP?\n(\.S[HS] |\.PP?\n)`), "$1"},
	{regexp.MustCompile(`(?m)^(\.(?:TH|SH|SS) .*\n)\.PP?\n`), "$1"},
	{regexp.MustCompile(`\.PP?\n$`), ""},
}

// tidy makes a page of scdoc's one that looks the same and has none of what mandoc
// would warn of, so that its other warnings are seen.
func tidy(page []byte) []byte {
	for _, u := range untidy {
		for u.form.Match(page) {
			page = u.form.ReplaceAll(page, []byte(u.tidy))
		}
	}
	return page
}
