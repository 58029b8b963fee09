package device

import (
	"strings"
	"unicode"
)

// What firmware says when nobody wrote a value, in lower case.
var placeholders = map[string]bool{
	"0123456789": true, "123456789": true, "1234567890": true, "12345678": true, "1234567": true, "123456": true, "12345": true, "1234": true, "123": true,
	"base board serial number": true,
	"chassis serial number":    true,
	"default":                  true,
	"default string":           true,
	"empty":                    true,
	"invalid":                  true,
	"n/a":                      true,
	"na":                       true,
	"none":                     true,
	"not applicable":           true,
	"not available":            true,
	"not defined":              true,
	"not specified":            true,
	"null":                     true,
	"o.e.m.":                   true,
	"oem":                      true,
	"s/n":                      true,
	"serial number":            true,
	"system manufacturer":      true,
	"system product name":      true,
	"system serial number":     true,
	"tbd":                      true,
	"to be filled by oem":      true,
	"to be filled by o.e.m.":   true,
	"undefined":                true,
	"unknown":                  true,
}

// placeholder says that v tells one board from another no better than nothing
// would: it is empty, one of the known words, one letter repeated ("0000",
// "XXXX", "----"), or not text at all (flash that was never written).
func placeholder(v string) bool {
	v = strings.ToLower(strings.TrimSpace(v))
	return v == "" || placeholders[v] || strings.Trim(v, v[:1]) == "" || !isText(v)
}

func isText(v string) bool {
	return !strings.ContainsFunc(v, func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) })
}
