package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The values that a key may have. Each type reads itself from TOML, so that a
// wrong word is found where it stands, with the words that are allowed.
type (
	KeyAlgorithm   string
	Method         string
	EdgeMethod     string
	Verify         string
	Storage        string
	Platform       string
	OnOrphan       string
	OnForeignState string
	Apply          string
	OperationalKey string
)

const (
	ECCP256 KeyAlgorithm = "ecc-p256"
	RSA2048 KeyAlgorithm = "rsa-2048"

	MethodCA     Method = "ca"
	MethodSecret Method = "est-secret"
	MethodBasic  Method = "est-ba"
	MethodMTLS   Method = "est-mtls"

	EdgeDPS   EdgeMethod = "dps"
	EdgeBasic EdgeMethod = "est-ba"
	EdgeMTLS  EdgeMethod = "est-mtls"

	VerifyRequire Verify = "require" // no verified EK certificate ends the run
	VerifyWarn    Verify = "warn"    // … is said in the status, and the run goes on
	VerifyOff     Verify = "off"     // … is not looked at

	StoragePlatform Storage = "platform"
	StorageOwner    Storage = "owner"

	PlatformClose Platform = "close"
	PlatformLeave Platform = "leave"

	OrphanReplace OnOrphan = "replace"
	OrphanRefuse  OnOrphan = "refuse"

	ForeignRefuse  OnForeignState = "refuse"
	ForeignDiscard OnForeignState = "discard"

	ApplyAuto  Apply = "auto"
	ApplyNever Apply = "never"

	OperationalTPM  OperationalKey = "tpm"
	OperationalFile OperationalKey = "file"

	// SystemCA as a server_ca means the system's store of CA certificates.
	SystemCA = "system"
)

// word reads one of the allowed words.
func word[T ~string](dst *T, text []byte, allowed ...T) error {
	if v := T(text); slices.Contains(allowed, v) {
		*dst = v
		return nil
	}
	e := &wordError{text: string(text)}
	for _, a := range allowed {
		e.allowed = append(e.allowed, string(a))
	}
	return e
}

// wordError is the error of a word that a key does not take.
type wordError struct {
	text    string
	allowed []string
}

func (e *wordError) Error() string {
	words := make([]string, len(e.allowed))
	for i, a := range e.allowed {
		words[i] = strconv.Quote(a)
	}
	return fmt.Sprintf("%q is not allowed here; allowed: %s", e.text, strings.Join(words, ", "))
}

func (v *KeyAlgorithm) UnmarshalText(b []byte) error { return word(v, b, ECCP256, RSA2048) }
func (v *Method) UnmarshalText(b []byte) error {
	return word(v, b, MethodCA, MethodSecret, MethodBasic, MethodMTLS)
}
func (v *EdgeMethod) UnmarshalText(b []byte) error { return word(v, b, EdgeDPS, EdgeBasic, EdgeMTLS) }
func (v *Verify) UnmarshalText(b []byte) error {
	return word(v, b, VerifyRequire, VerifyWarn, VerifyOff)
}
func (v *Storage) UnmarshalText(b []byte) error  { return word(v, b, StoragePlatform, StorageOwner) }
func (v *Platform) UnmarshalText(b []byte) error { return word(v, b, PlatformClose, PlatformLeave) }
func (v *OnOrphan) UnmarshalText(b []byte) error { return word(v, b, OrphanReplace, OrphanRefuse) }
func (v *OnForeignState) UnmarshalText(b []byte) error {
	return word(v, b, ForeignRefuse, ForeignDiscard)
}
func (v *Apply) UnmarshalText(b []byte) error { return word(v, b, ApplyAuto, ApplyNever) }
func (v *OperationalKey) UnmarshalText(b []byte) error {
	return word(v, b, OperationalTPM, OperationalFile)
}

// Duration is a time span as Go writes it: "10m", "1h30m".
type Duration time.Duration

func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v <= 0 {
		return fmt.Errorf(`%q is not a time span above zero; allowed: like "90s", "10m", "1h30m"`, b)
	}
	*d = Duration(v)
	return nil
}

// Secret names a secret; it is never the secret itself. A name without a slash
// is a systemd credential, looked for in $CREDENTIALS_DIRECTORY (by its name,
// and by the one that it gets where a unit loads all of
// /etc/tpm2cloud/credentials as "tpm2cloud") and then, for runs by hand, in
// that directory itself. An absolute path is a file. A
// file must belong to the user who reads it and be closed to everybody else
// (mode 0600 or less).
type Secret string

func (s *Secret) UnmarshalText(b []byte) error {
	v := string(b)
	if strings.HasPrefix(v, "/") || v == "" || credentialName(v) {
		*s = Secret(v)
		return nil
	}
	// The value is not repeated: it may be a password that was put here by mistake.
	return fmt.Errorf("this is not the name of a secret; allowed: the name of a credential ([a-zA-Z0-9._-]) or an absolute path of a file of mode 0600")
}

// credentialName says whether systemd takes s as the name of a credential.
func credentialName(s string) bool {
	return len(s) <= 255 && s != "." && s != ".." && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r))
	}) < 0
}
