package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
)

//go:embed keys.toml
var keysText []byte

// entry is what keys.toml says of a key or a table.
type entry struct {
	Comment string            `toml:"comment"`
	Text    string            `toml:"text"`
	Words   map[string]string `toml:"words"`
	As      string            `toml:"as"`
}

// key is a key with its text.
type key struct {
	config.Key
	said entry
	as   string // the table that has the text
}

// keys is the whole configuration, described.
type keys struct {
	head   string
	tables map[string]entry
	list   []key
}

// readKeys joins a text with the keys that the programs read, and complains of all
// that is in one of them only.
func readKeys(text []byte) (*keys, error) {
	var source struct {
		Head  string           `toml:"head"`
		Table map[string]entry `toml:"table"`
		Key   map[string]entry `toml:"key"`
	}
	decoder := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	if err := decoder.Decode(&source); err != nil {
		if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			return nil, fmt.Errorf("cannot read keys.toml: %s", strict.String())
		}
		return nil, fmt.Errorf("cannot read keys.toml: %w", err)
	}
	m := &keys{head: strings.TrimSpace(source.Head), tables: map[string]entry{}}
	var problems []error
	complain := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("scripts/manual/keys.toml: "+format, args...))
	}
	for _, k := range config.Keys() {
		table, name := k.Table()
		if _, ok := m.tables[table]; !ok {
			t, ok := source.Table[table]
			if !ok || t.Text == "" {
				complain("there is no text for the table [%s]: add [table.%q] with text", table, table)
			}
			m.tables[table] = t
			delete(source.Table, table)
		}
		e, ok := source.Key[k.Name]
		described := key{Key: k, said: e, as: e.As}
		if e.As != "" {
			same, found := source.Key[e.As+"."+name]
			if e.Comment+e.Text != "" || len(e.Words) > 0 || !found || same.As != "" {
				complain("%s has as = %q, which must be alone and name a table that describes %s", k.Name, e.As, name)
			}
			described.said = same
		} else if !ok || e.Text == "" {
			complain("there is no text for the key %s: add [key.%q] with text, and a comment", k.Name, k.Name)
		}
		if told, want := slices.Sorted(maps.Keys(described.said.Words)), slices.Sorted(slices.Values(k.Words)); !slices.Equal(told, want) {
			complain("%s takes the words %q, and the text explains %q", k.Name, want, told)
		}
		m.list = append(m.list, described)
	}
	for _, k := range m.list {
		delete(source.Key, k.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(source.Key)) {
		complain("there is no key %s: take its text away", name)
	}
	for _, name := range slices.Sorted(maps.Keys(source.Table)) {
		complain("there is no table [%s]: take its text away", name)
	}
	return m, errors.Join(problems...)
}

// words are those that the key takes, the default first.
func (k key) words() []string {
	list := slices.Clone(k.Words)
	slices.SortStableFunc(list, func(a, b string) int {
		first := func(word string) int {
			if fmt.Sprintf("%q", word) == k.Default {
				return 0
			}
			return 1
		}
		return first(a) - first(b)
	})
	return list
}

// --- the file ------------------------------------------------------------------

const (
	column = 31  // where comments begin
	width  = 100 // where lines of the file end
)

// conffile is the configuration with every key at its default, commented out.
func (m *keys) conffile() string {
	var b strings.Builder
	for line := range strings.Lines(m.head + "\n") {
		b.WriteString(strings.TrimRight("# "+line, " \n") + "\n")
	}
	last := ""
	for _, k := range m.list {
		table, name := k.Table()
		if table != last {
			b.WriteString("\n")
			if c := m.tables[table].Comment; c != "" {
				b.WriteString("# " + c + "\n")
			}
			b.WriteString("[" + table + "]\n")
			last = table
		}
		b.WriteString(line("#"+name+" = "+k.Default, k.comment()))
	}
	return b.String()
}

// comment is what stands behind the key in the file.
func (k key) comment() string {
	words := strings.Join(k.words(), " | ")
	if words != "" && k.said.Comment != "" {
		return words + ": " + k.said.Comment
	}
	return words + k.said.Comment
}

// line is a setting with its comment, which may go on below.
func line(setting, comment string) string {
	if comment == "" {
		return setting + "\n"
	}
	text := fmt.Sprintf("%-*s#", column, setting)
	if len(setting) >= column {
		text = setting + "  #"
	}
	var b strings.Builder
	for _, word := range strings.Fields(comment) {
		if len(text)+1+len(word) > width {
			b.WriteString(text + "\n")
			text = strings.Repeat(" ", column) + "#"
		}
		text += " " + word
	}
	return b.String() + text + "\n"
}

// --- the page ------------------------------------------------------------------

// page is the part of tpm2cloud.toml(5) that has the keys, for scdoc.
func (m *keys) page() string {
	var b strings.Builder
	last := ""
	for i := 0; i < len(m.list); i++ {
		k := m.list[i]
		table, _ := k.Table()
		if table != last {
			if strings.Contains(table, ".") {
				b.WriteString("## [" + table + "]\n\n")
			} else {
				b.WriteString("# " + strings.ToUpper(table) + "\n\n")
			}
			b.WriteString(strings.TrimSpace(m.tables[table].Text) + "\n\n")
			last = table
		}
		b.WriteString(k.term())
		if k.as == "" {
			b.WriteString("\n" + indent(k.text()) + "\n")
			continue
		}
		// Those that mean the same as in another table are one entry.
		for i+1 < len(m.list) && m.list[i+1].as == k.as && strings.HasPrefix(m.list[i+1].Name, table+".") {
			i++
			b.WriteString(", " + m.list[i].term())
		}
		b.WriteString("\n" + indent("As in *["+k.as+"]*.") + "\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// term is the key with its default, if that is not empty.
func (k key) term() string {
	_, name := k.Table()
	if k.Default == `""` {
		return "*" + name + "*"
	}
	return "*" + name + "* = " + k.Default
}

// text is what the page says of the key.
func (k key) text() string {
	text := strings.TrimSpace(k.said.Text)
	if words := k.words(); len(words) > 0 {
		text += "\n"
		for i, word := range words {
			if i > 0 {
				text += "; "
			}
			text += fmt.Sprintf("%q: %s", word, k.said.Words[word])
		}
		text += "."
	}
	if k.Secret {
		text += "\nA secret."
	}
	return text
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text + "\n") {
		b.WriteString("\t" + line)
	}
	return b.String()
}
