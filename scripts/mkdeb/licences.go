package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// licence is what a module's licence file says.
type licence struct {
	id        string // of SPDX
	copyright []string
	text      string
	notice    string // of Apache-2.0's NOTICE file
}

// Each licence is known by a sentence that no other has. A text that is not
// known stops the build: somebody must read it first.
var licences = []struct{ id, sentence string }{
	{"Apache-2.0", "Apache License Version 2.0, January 2004"},
	{"MPL-2.0", "Mozilla Public License Version 2.0"},
	{"MIT", "Permission is hereby granted, free of charge, to any person obtaining a copy"},
	{"ISC", "Permission to use, copy, modify, and/or distribute this software for any purpose"},
	{"ISC", "Permission to use, copy, modify, and distribute this software for any purpose"},
	// In this order: two clauses of three are those of two.
	{"BSD-3-Clause", "may be used to endorse or promote products derived from this software without specific prior written permission"},
	{"BSD-2-Clause", "Redistribution and use in source and binary forms, with or without modification, are permitted"},
}

// licenceIn reads the licence of the source in dir.
func licenceIn(dir string) (licence, error) {
	var l licence
	for _, name := range []string{"LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			l.text = strings.TrimSpace(string(data))
			break
		}
	}
	if l.text == "" {
		return l, fmt.Errorf("cannot find a licence file in %s", filepath.Base(dir))
	}
	words := strings.Join(strings.Fields(l.text), " ")
	for _, known := range licences {
		if strings.Contains(words, known.sentence) {
			l.id = known.id
			break
		}
	}
	if l.id == "" {
		return l, fmt.Errorf("cannot tell which licence %s has: add it to scripts/mkdeb/licences.go", filepath.Base(dir))
	}
	for line := range strings.Lines(l.text) {
		line = strings.TrimSpace(strings.Trim(strings.TrimSpace(line), "*"))
		// The text of Apache-2.0 ends with a line for others to fill in.
		if rest, ok := strings.CutPrefix(line, "Copyright "); ok && !strings.ContainsAny(rest, "[{") {
			l.copyright = append(l.copyright, strings.TrimPrefix(rest, "(c) "))
		}
	}
	if notice, err := os.ReadFile(filepath.Join(dir, "NOTICE")); err == nil {
		l.notice = strings.TrimSpace(string(notice))
	}
	return l, nil
}

// stanza is the licence in the form of debian/copyright.
func (l licence) stanza(files, owner string) string {
	copyright := l.copyright
	if len(copyright) == 0 {
		copyright = []string{"the authors of " + owner}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Files: %s\nCopyright: %s\n", files, strings.Join(copyright, "\n           "))
	short := l.id
	if short == "MIT" {
		short = "Expat" // as Debian calls it, because there are several
	}
	text := l.text
	if l.id == "Apache-2.0" {
		text = "On Debian systems, the text of this licence is in\n/usr/share/common-licenses/Apache-2.0."
		if l.notice != "" {
			text += "\n\nThe notice that goes with these files:\n\n" + l.notice
		}
	}
	fmt.Fprintf(&b, "License: %s\n%s", short, indented(text))
	return b.String()
}

// indented is a text as the continuation of a field.
func indented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text + "\n") {
		line = strings.TrimRight(strings.ReplaceAll(line, "\t", "    "), " \r\n")
		if line == "" {
			line = "."
		}
		b.WriteString(" " + line + "\n")
	}
	return b.String()
}
