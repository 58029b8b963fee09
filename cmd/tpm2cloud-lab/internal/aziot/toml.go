package aziot

import (
	"errors"
	"fmt"
	"math"
)

// table is a TOML table, read the way serde reads a struct: each field that is wanted is asked for
// by name and type, and what nobody asks for is ignored.
type table map[string]any

// get reads a field that must be there.
func get[T any](t table, key string) (T, error) {
	v, err := optional[T](t, key)
	if err == nil && v == nil {
		return *new(T), fmt.Errorf("missing field `%s`", key)
	}
	if err != nil {
		return *new(T), err
	}
	return *v, nil
}

// optional reads a field that may be missing, but must have its type if it is there.
func optional[T any](t table, key string) (*T, error) {
	v, there := t[key]
	if !there {
		return nil, nil
	}
	if x, is := v.(T); is {
		return &x, nil
	}
	return nil, fmt.Errorf("`%s` is %s", key, typeName(v))
}

// sub reads a table that may be missing.
func (t table) sub(key string) (table, error) {
	v, err := optional[map[string]any](t, key)
	if v == nil {
		return nil, err
	}
	return *v, nil
}

// positive reads an unsigned 32-bit number that may be missing; 0 says that it is.
func (t table) positive(key string) (uint32, error) {
	v, err := optional[int64](t, key)
	if v == nil {
		return 0, err
	}
	if *v <= 0 || *v > math.MaxUint32 {
		return 0, fmt.Errorf("`%s` is %d, out of range", key, *v)
	}
	return uint32(*v), nil
}

// stringMap reads a table of strings that may be missing.
func (t table) stringMap(key string) (map[string]string, error) {
	sub, err := t.sub(key)
	if err != nil {
		return nil, err
	}
	m := make(map[string]string)
	for name := range sub {
		if m[name], err = get[string](sub, name); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	return m, nil
}

// link reads a URL that may be missing.
func (t table) link(key string) (string, error) {
	s, err := optional[string](t, key)
	if s == nil {
		return "", err
	}
	u, err := parseURL(*s)
	if err != nil {
		return "", fmt.Errorf("`%s`: %w", key, err)
	}
	return u.String(), nil
}

// keyPair reads PREFIXcert and PREFIXpk.
func (t table) keyPair(prefix string) (*KeyPair, error) {
	cert, err := t.link(prefix + "cert")
	if err == nil && cert == "" {
		err = errors.New("missing field `" + prefix + "cert`")
	}
	if err != nil {
		return nil, err
	}
	pk, err := get[string](t, prefix+"pk")
	if err != nil {
		return nil, err
	}
	key, err := ParseKeyLocation(pk)
	if err != nil {
		return nil, fmt.Errorf("`%spk`: %w", prefix, err)
	}
	return &KeyPair{Cert: cert, Key: key}, nil
}

func typeName(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case bool:
		return "a boolean"
	case map[string]any:
		return "a table"
	case []any:
		return "an array"
	}
	return "of another type"
}
