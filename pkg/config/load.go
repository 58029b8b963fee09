package config

import (
	"encoding"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

const (
	mainFile  = "tpm2cloud.toml"
	dropInDir = "tpm2cloud.toml.d"
)

// Load reads the configuration in dir, which is used as it is: root is only
// what [Config.Path] puts in front of the paths that the configuration names.
//
// The main file may be missing where there is a drop-in, so that a fleet can
// be configured by a package or an image that only adds files. All problems
// of all files are reported at once.
func Load(dir, root string) (*Config, error) {
	c := Default()
	c.root = root
	c.at = positions{main: filepath.Join(dir, mainFile), set: map[string]position{}}

	files, err := list(dir)
	if err != nil {
		return nil, err
	}
	var problems []error
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, unreadable(file, err)
		}
		problems = append(problems, c.merge(file, data)...)
	}
	problems = append(problems, c.validate()...)
	if len(problems) > 0 {
		return nil, join(problems)
	}
	return c, nil
}

// list names the files of a configuration in the order in which they are read.
func list(dir string) ([]string, error) {
	var files []string
	main := filepath.Join(dir, mainFile)
	_, missing := os.Stat(main)
	if missing == nil {
		files = append(files, main)
	} else if !errors.Is(missing, fs.ErrNotExist) {
		return nil, unreadable(main, missing)
	}

	dropIns := filepath.Join(dir, dropInDir)
	entries, err := os.ReadDir(dropIns) // sorted by name
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, unreadable(dropIns, err)
	}
	for _, e := range entries {
		// A leading dot is an editor's or a package manager's own file.
		if name := e.Name(); filepath.Ext(name) == ".toml" && !strings.HasPrefix(name, ".") {
			files = append(files, filepath.Join(dropIns, name))
		}
	}
	if len(files) == 0 {
		return nil, unreadable(main, missing)
	}
	return files, nil
}

// unreadable is the error for a file that cannot be read at all.
func unreadable(file string, err error) error {
	class, hint := step.Configuration, "write the file; the one that comes with the programs has every key, with comments"
	if errors.Is(err, fs.ErrPermission) {
		class, hint = step.Permission, "the configuration holds no secrets: its files are of mode 0644, its directories of 0755"
	}
	// os says the path once more; the cause is enough here.
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return step.As(class, hint, &Error{File: file, Err: err})
}

// A setting is a key in a file, or the head of a table.
type setting struct {
	key   []string
	line  int
	table unstable.Kind // Table, ArrayTable or InlineTable; Invalid for a value
}

// within says whether the key, or a table that it is in, is one of keys.
func (s setting) within(keys map[string]bool) bool {
	key := ""
	for _, name := range s.key {
		if key = dotted(key, name); keys[key] {
			return true
		}
	}
	return false
}

// merge lays one file over c. What can be used of a faulty file is used, so
// that the other problems are found in the same run.
//
// go-toml's own strict decoding stops at the first value of a wrong type, and
// tells of unknown keys only if there was none. So it judges the document
// here, and the keys are taken from it one by one.
func (c *Config) merge(file string, data []byte) []error {
	var document map[string]any
	if err := toml.Unmarshal(data, &document); err != nil {
		return []error{syntax(file, err)}
	}

	fields := schema(c)
	var problems []error
	reported := map[string]bool{}
	for _, s := range settings(data) {
		// A table that does not exist is one problem, not one for each key in it.
		if s.within(reported) {
			continue
		}
		key, err := apply(fields, document, s)
		if err != nil {
			reported[key] = true
			problems = append(problems, &Error{File: file, Line: s.line, Key: key, Err: err})
		} else if s.table == unstable.Invalid {
			c.at.set[key] = position{file, s.line}
		}
	}
	return problems
}

// syntax is the error of a document that is not TOML.
func syntax(file string, err error) error {
	if de, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := de.Position()
		return &Error{File: file, Line: line, Err: fmt.Errorf("column %d: %w", column, err)}
	}
	return &Error{File: file, Err: err}
}

// settings lists the keys of a valid document in the order of its lines.
func settings(data []byte) []setting {
	var (
		p     unstable.Parser
		all   []setting
		table []string
	)
	read := func(prefix []string, n *unstable.Node) setting {
		s := setting{key: prefix[:len(prefix):len(prefix)]}
		for it := n.Key(); it.Next(); {
			s.key = append(s.key, string(it.Node().Data))
			s.line = p.Shape(it.Node().Raw).Start.Line
		}
		return s
	}
	var value func(prefix []string, n *unstable.Node)
	value = func(prefix []string, n *unstable.Node) {
		s := read(prefix, n)
		if n.Value().Kind != unstable.InlineTable {
			all = append(all, s)
			return
		}
		s.table = unstable.InlineTable
		all = append(all, s)
		for it := n.Value().Children(); it.Next(); {
			value(s.key, it.Node())
		}
	}
	for p.Reset(data); p.NextExpression(); {
		switch e := p.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			s := read(nil, e)
			s.table = e.Kind
			all, table = append(all, s), s.key
		case unstable.KeyValue:
			value(table, e)
		}
	}
	return all
}

// apply puts one setting's value into its field. The key that it returns is
// the part of the setting's key that the error is about.
func apply(fields fields, document map[string]any, s setting) (key string, err error) {
	for i, name := range s.key {
		parent := key
		key = dotted(parent, name)
		f, ok := fields.at[key]
		last := i == len(s.key)-1
		switch {
		case !ok, strings.Contains(name, "."): // "a.b" in quotes is one name, and none of ours
			return key, fmt.Errorf("there is no such key; %s", fields.near(parent, name))
		case f.Kind() != reflect.Struct && (!last || s.table != unstable.Invalid):
			return key, fmt.Errorf("this is a table; allowed: %s", allowed(f))
		case f.Kind() == reflect.Struct && last && s.table == unstable.ArrayTable:
			return key, fmt.Errorf("this is a list of tables; allowed: one table, [%s]", key)
		case f.Kind() == reflect.Struct && last && s.table == unstable.Invalid:
			return key, fmt.Errorf("this is %s; allowed: a table, [%s]", kind(lookup(document, s.key)), key)
		}
	}
	if s.table != unstable.Invalid {
		return key, nil
	}
	return key, assign(fields.at[key], lookup(document, s.key))
}

// lookup finds the value of a key; nil where a list of tables is in the way.
func lookup(document map[string]any, key []string) any {
	var v any = document
	for _, name := range key {
		table, _ := v.(map[string]any)
		v = table[name]
	}
	return v
}

// assign gives a field a value of its own type.
func assign(f reflect.Value, v any) error {
	wrong := fmt.Errorf("this is %s; allowed: %s", kind(v), allowed(f))
	switch f.Kind() {
	case reflect.Bool:
		b, ok := v.(bool)
		if !ok {
			return wrong
		}
		f.SetBool(b)
		return nil
	case reflect.Int:
		n, ok := v.(int64)
		if !ok || f.OverflowInt(n) {
			return wrong
		}
		f.SetInt(n)
		return nil
	case reflect.Slice:
		list, ok := v.([]any)
		if !ok {
			return wrong
		}
		words := make([]string, len(list))
		for i, e := range list {
			if words[i], ok = e.(string); !ok {
				return fmt.Errorf("this list has %s in it; allowed: %s", kind(e), allowed(f))
			}
		}
		f.Set(reflect.ValueOf(words))
		return nil
	}
	s, ok := v.(string)
	if !ok {
		return wrong
	}
	if u, ok := f.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(s))
	}
	f.SetString(s)
	return nil
}

// kind says what a value of TOML is.
func kind(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case bool:
		return "true or false"
	case int64:
		return "an integer"
	case float64:
		return "a number with a point"
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date or a time"
}

// allowed says what a field takes.
func allowed(f reflect.Value) string {
	switch f.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "an integer"
	case reflect.Slice:
		return `a list of strings, ["…", "…"]`
	}
	return `a string in quotes, "…"`
}
