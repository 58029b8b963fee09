package token

import (
	"fmt"
	"strconv"
	"strings"
)

// The store keeps mappings in libyaml's canonical form, which the C library reads back
// tag by tag:
//
//	---
//	!!map {
//	  ? !!str "transient"
//	  : !!bool "false",
//	}
//
// This file reads that form and nothing more of YAML: flow mappings and sequences of
// quoted or plain scalars, with tags. It is more tolerant than the C library (a tag, a
// `?`, a last comma may be missing) and bounded, because the store can be written by
// the owner's services, not only by us.

const (
	maxYAML    = 64 << 10 // an RSA key's row has about 4 KiB
	maxEntries = 512      // C_GenerateKeyPair writes about 45
)

// A scalar or a sequence of scalars: all that a row has as values.
type yamlValue struct {
	text string
	seq  []string
}

type yamlEntry struct {
	key   string
	value yamlValue
}

type yamlParser struct {
	s string // what is left
	n int    // entries seen
}

// parseYAML returns the entries of the mapping in their order. Keys can repeat, as they
// do in what C_GenerateKeyPair writes; see [first].
func parseYAML(s string) ([]yamlEntry, error) {
	if len(s) > maxYAML {
		return nil, fmt.Errorf("%w: %d bytes of YAML", ErrCorrupt, len(s))
	}
	p := &yamlParser{s: s}
	p.space()
	if rest, ok := strings.CutPrefix(p.s, "---"); ok {
		p.s = rest
	}
	p.tag()
	if !p.eat('{') {
		return nil, p.fail("a mapping")
	}
	var entries []yamlEntry
	for !p.eat('}') {
		p.eat('?')
		key, err := p.scalar()
		if err != nil {
			return nil, err
		}
		if !p.eat(':') {
			return nil, p.fail("':'")
		}
		value, err := p.value()
		if err != nil {
			return nil, err
		}
		entries = append(entries, yamlEntry{key, value})
		if !p.eat(',') && !p.at('}') {
			return nil, p.fail("',' or '}'")
		}
	}
	p.space()
	if rest, ok := strings.CutPrefix(p.s, "..."); ok {
		p.s = rest
		p.space()
	}
	if p.s != "" {
		return nil, p.fail("the end")
	}
	return entries, nil
}

func (p *yamlParser) value() (yamlValue, error) {
	p.tag()
	if !p.eat('[') {
		text, err := p.scalar()
		return yamlValue{text: text}, err
	}
	v := yamlValue{seq: []string{}}
	for !p.eat(']') {
		text, err := p.scalar()
		if err != nil {
			return v, err
		}
		v.seq = append(v.seq, text)
		if !p.eat(',') && !p.at(']') {
			return v, p.fail("',' or ']'")
		}
	}
	return v, nil
}

func (p *yamlParser) scalar() (string, error) {
	if p.n++; p.n > maxEntries {
		return "", fmt.Errorf("%w: more than %d YAML scalars", ErrCorrupt, maxEntries)
	}
	p.tag()
	switch {
	case p.at('"'):
		quoted, err := strconv.QuotedPrefix(p.s)
		if err != nil {
			return "", p.fail("a closed string")
		}
		// The escapes that libyaml uses for control characters, quotes and backslashes
		// are Go's too, which is all that labels have.
		text, err := strconv.Unquote(quoted)
		if err != nil {
			return "", p.fail("a string")
		}
		p.s = p.s[len(quoted):]
		return text, nil
	case p.at('\''):
		text, rest, ok := strings.Cut(p.s[1:], "'")
		if !ok {
			return "", p.fail("a closed string")
		}
		p.s = rest
		return text, nil
	}
	i := strings.IndexAny(p.s, " \t\r\n,:{}[]\"'")
	if i <= 0 {
		return "", p.fail("a scalar")
	}
	text := p.s[:i]
	p.s = p.s[i:]
	return text, nil
}

// tag skips a tag: the attribute's number decides what type its value must have.
func (p *yamlParser) tag() {
	if !p.at('!') {
		return
	}
	i := strings.IndexAny(p.s, " \t\r\n{[\"'")
	if i < 0 {
		i = len(p.s)
	}
	p.s = p.s[i:]
	p.space()
}

func (p *yamlParser) space() { p.s = strings.TrimLeft(p.s, " \t\r\n") }

func (p *yamlParser) at(c byte) bool {
	p.space()
	return p.s != "" && p.s[0] == c
}

func (p *yamlParser) eat(c byte) bool {
	if !p.at(c) {
		return false
	}
	p.s = p.s[1:]
	p.space()
	return true
}

func (p *yamlParser) fail(want string) error {
	got := "the end"
	if p.s != "" {
		// One character only: a row can have a wrapped secret in it.
		got = strconv.Quote(p.s[:1])
	}
	return fmt.Errorf("%w YAML: want %s, have %s", ErrCorrupt, want, got)
}

// first returns the first value of a key: the one that the C library finds.
func first(entries []yamlEntry, key string) (yamlValue, bool) {
	for _, e := range entries {
		if e.key == key {
			return e.value, true
		}
	}
	return yamlValue{}, false
}

// truth reads a boolean as libyaml's users write it. Anything else is false.
func truth(entries []yamlEntry, key string) bool {
	v, _ := first(entries, key)
	return strings.EqualFold(v.text, "true") || strings.EqualFold(v.text, "yes")
}

// yamlWriter writes the same form. Values have no character that needs escaping: they
// are numbers, booleans and hex.
type yamlWriter struct{ strings.Builder }

func (w *yamlWriter) entry(key uint, tag, value string) {
	fmt.Fprintf(w, "  ? !!int \"%d\"\n  : !!%s %q,\n", key, tag, value)
}

func (w *yamlWriter) num(key, value uint)    { w.entry(key, "int", strconv.FormatUint(uint64(value), 10)) }
func (w *yamlWriter) flag(key uint, v bool)  { w.entry(key, "bool", strconv.FormatBool(v)) }
func (w *yamlWriter) hex(key uint, v []byte) { w.entry(key, "str", fmt.Sprintf("%x", v)) }

func (w *yamlWriter) seq(key uint, values []uint) {
	fmt.Fprintf(w, "  ? !!int \"%d\"\n  : !!seq [\n", key)
	for _, v := range values {
		fmt.Fprintf(w, "    !!int \"%d\",\n", v)
	}
	w.WriteString("  ],\n")
}
