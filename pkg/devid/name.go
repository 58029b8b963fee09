package devid

import (
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxName is ub-common-name and ub-serial-number of RFC 5280, appendix A.1. We count bytes, because
// other programs do.
const maxName = 64

// Subject is the name that goes into a request. An empty serial number or organization is left out.
func Subject(commonName, serialNumber, organization string) pkix.Name {
	name := pkix.Name{CommonName: commonName, SerialNumber: serialNumber}
	if organization != "" {
		name.Organization = []string{organization}
	}
	return name
}

// checkSubject says why no CA would take a name, or a strict one would not.
func checkSubject(name pkix.Name) error {
	if name.CommonName == "" {
		return errors.New("the common name is empty")
	}
	for _, v := range []struct{ what, value string }{
		{"common name", name.CommonName},
		{"serial number", name.SerialNumber},
		{"organization", strings.Join(name.Organization, "")},
	} {
		if len(v.value) > maxName {
			return fmt.Errorf("the %s %q has %d bytes, and at most %d are allowed", v.what, v.value, len(v.value), maxName)
		}
		if !utf8.ValidString(v.value) || strings.ContainsFunc(v.value, unicode.IsControl) {
			return fmt.Errorf("the %s %q has a character that is not printable", v.what, v.value)
		}
	}
	// X520SerialNumber is a PrintableString, and nothing else, in RFC 5280.
	if i := strings.IndexFunc(name.SerialNumber, func(r rune) bool { return !printableString(r) }); i >= 0 {
		r, _ := utf8.DecodeRuneInString(name.SerialNumber[i:])
		return fmt.Errorf("the serial number %q has %q at position %d; allowed are letters, digits, space and '()+,-./:=?",
			name.SerialNumber, r, i+1)
	}
	return nil
}

func printableString(r rune) bool {
	return lowerOrDigit(r) || r >= 'A' && r <= 'Z' || strings.ContainsRune(" '()+,-./:=?", r)
}

func lowerOrDigit(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' }

// DPSName says whether the Azure Device Provisioning Service takes s as the name of a device: as a
// registration id, and so as the common name of its certificate. That is
// ^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$.
func DPSName(s string) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("cannot use %q as a device's name: "+format, append([]any{s}, args...)...)
	}
	if s == "" {
		return bad("it is empty")
	}
	for i, r := range s {
		if !lowerOrDigit(r) && !strings.ContainsRune("._-", r) {
			return bad("%q at position %d; allowed are a-z, 0-9, '.', '_' and '-'", r, i+1)
		}
	}
	if len(s) > maxName {
		return bad("it has %d characters, and at most %d are allowed", len(s), maxName)
	}
	for _, i := range []int{0, len(s) - 1} {
		if !lowerOrDigit(rune(s[i])) {
			return bad("%q at position %d; the first and the last character must be a letter or a digit", s[i], i+1)
		}
	}
	return nil
}

// sameName compares the attributes of two names. Their order and the type of their strings are the CA's
// business: OpenSSL's ca sorts them by its policy, and others write UTF8String where we wrote PrintableString.
// The values are compared byte for byte, because DPS and IoT Hub do so.
func sameName(a, b pkix.Name) bool { return slices.Equal(attributes(a), attributes(b)) }

func attributes(name pkix.Name) []string {
	var all []string
	for _, rdn := range name.ToRDNSequence() {
		for _, a := range rdn {
			all = append(all, fmt.Sprintf("%s=%v", a.Type, a.Value))
		}
	}
	slices.Sort(all)
	return all
}
