package config

import (
	"encoding"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Key is a key of the configuration, as a manual shows it.
type Key struct {
	Name    string   // dotted: "idevid.enroll.method"
	Default string   // as TOML has it: "\"est-ba\"", "true", "[\"/a\", \"/b\"]"
	Words   []string // all that it may be, where that is one of a few words
	Secret  bool     // it names a secret
}

// Table is the table that the key is in, and its name there.
func (k Key) Table() (table, name string) { return split(k.Name) }

// Keys are all keys that there are, in the order of the structs. What they say is
// taken from what [Load] and [Config.Check] go by.
func Keys() []Key {
	fields := schema(Default())
	var list []Key
	for _, name := range fields.keys {
		v := fields.at[name]
		if v.Kind() == reflect.Struct {
			continue
		}
		_, secret := v.Interface().(Secret)
		list = append(list, Key{Name: name, Default: literal(v), Words: words(name, v), Secret: secret})
	}
	return list
}

// literal writes a value as TOML has it.
func literal(v reflect.Value) string {
	if d, ok := v.Interface().(Duration); ok {
		text := time.Duration(d).String()
		for _, zero := range []string{"0s", "0m"} {
			// Of "10m0s" and "1h0m0s", but not of "10s".
			if short, ok := strings.CutSuffix(text, zero); ok && strings.ContainsAny(short[len(short)-1:], "hm") {
				text = short
			}
		}
		return strconv.Quote(text)
	}
	switch v.Kind() {
	case reflect.Slice:
		var all []string
		for _, element := range v.Seq2() {
			all = append(all, literal(element))
		}
		return "[" + strings.Join(all, ", ") + "]"
	case reflect.Int:
		return strconv.FormatInt(v.Int(), 10)
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	}
	return strconv.Quote(v.String())
}

// words are what the type of a key takes, but for those that no program takes
// for this key.
func words(key string, v reflect.Value) []string {
	u, ok := reflect.New(v.Type()).Interface().(encoding.TextUnmarshaler)
	if !ok {
		return nil
	}
	// No word is empty, so this tells them all.
	wrong, ok := errors.AsType[*wordError](u.UnmarshalText(nil))
	if !ok {
		return nil
	}
	return slices.DeleteFunc(wrong.allowed, func(word string) bool {
		c := Default()
		schema(c).at[key].SetString(word)
		return slices.ContainsFunc([]Program{ProgramIDevID, ProgramLDevID, ProgramEdge}, func(p Program) bool { return refuses(c.Check(p), key) })
	})
}

// refuses says whether a key is among the problems.
func refuses(err error, key string) bool {
	switch e := err.(type) {
	case *Error:
		return e.Key == key
	case interface{ Unwrap() error }:
		return refuses(e.Unwrap(), key)
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), func(err error) bool { return refuses(err, key) })
	}
	return false
}
