package config

import (
	"reflect"
	"strings"
)

// fields are the keys and tables of a Config by their dotted names.
type fields struct {
	keys []string // in the order of the structs
	at   map[string]reflect.Value
}

// schema is what the toml tags of the structs say. They are the only list of
// keys that there is.
func schema(c *Config) fields {
	fs := fields{at: map[string]reflect.Value{}}
	fs.add("", reflect.ValueOf(c).Elem())
	return fs
}

func (fs *fields) add(table string, v reflect.Value) {
	for f, value := range v.Fields() {
		name := f.Tag.Get("toml")
		if name == "" {
			continue
		}
		key := dotted(table, name)
		fs.keys = append(fs.keys, key)
		fs.at[key] = value
		if value.Kind() == reflect.Struct {
			fs.add(key, value)
		}
	}
}

// near names the key that the writer of an unknown one may have meant: one of
// the same table that is spelled like it, else those of the same name in other
// tables, else all of the table.
func (fs fields) near(table, name string) string {
	var siblings, elsewhere []string
	best, least := "", 2+len(name)/4
	for _, key := range fs.keys {
		parent, last := split(key)
		if parent == table {
			siblings = append(siblings, last)
			if d := distance(name, last); d < least {
				best, least = key, d
			}
		} else if last == name {
			elsewhere = append(elsewhere, key)
		}
	}
	switch {
	case best != "":
		return "nearest: " + best
	case len(elsewhere) > 0:
		return "nearest: " + strings.Join(elsewhere, ", ")
	case table == "":
		return "allowed: [" + strings.Join(siblings, "], [") + "]"
	}
	return "allowed in [" + table + "]: " + strings.Join(siblings, ", ")
}

// dotted makes a dotted key of a table and a name in it.
func dotted(table, name string) string {
	if table == "" {
		return name
	}
	return table + "." + name
}

// split is the reverse of dotted.
func split(key string) (table, name string) {
	if i := strings.LastIndexByte(key, '.'); i >= 0 {
		return key[:i], key[i+1:]
	}
	return "", key
}

// distance is Levenshtein's: how many letters must be changed, added or taken
// away to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d = 1 + min(d, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}
