package config

import (
	"slices"
	"strings"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Placeholders are what a pattern of a name may have between braces.
func Placeholders() []string {
	return []string{"hash", "serial", "model", "mac", "machine-id", "ek"}
}

// Expand puts values in the place of the placeholders of a pattern such as
// "board-{serial}". It asks for the value of those only that the pattern has.
func Expand(pattern string, value func(placeholder string) (string, error)) (string, error) {
	var b strings.Builder
	for rest := pattern; ; {
		i := strings.IndexAny(rest, "{}")
		if i < 0 {
			b.WriteString(rest)
			return b.String(), nil
		}
		b.WriteString(rest[:i])
		name, after, closed := strings.Cut(rest[i+1:], "}")
		if rest[i] == '}' || !closed || !slices.Contains(Placeholders(), name) {
			return "", step.Fail(step.Configuration, "%q has a placeholder that does not exist; allowed: {%s}",
				pattern, strings.Join(Placeholders(), "}, {"))
		}
		v, err := value(name)
		if err != nil {
			return "", err
		}
		b.WriteString(v)
		rest = after
	}
}
