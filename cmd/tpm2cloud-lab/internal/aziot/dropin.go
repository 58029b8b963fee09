package aziot

import (
	"fmt"
	"os"
	"strings"
)

// Environment sets this process's environment from systemd drop-ins of aziot-keyd, as systemd would
// for that service. Variables of tpm2-pkcs11 that are set already are dropped first: it is the
// drop-in that is to be tested.
func Environment(dropins []string) error {
	if len(dropins) == 0 {
		return nil
	}
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "TPM2_PKCS11_") {
			if err := os.Unsetenv(name); err != nil {
				return fmt.Errorf("cannot set the environment: %w", err)
			}
		}
	}
	env := make(map[string]string)
	for _, path := range dropins {
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("cannot read drop-in: %w", err)
		}
		if err := parseDropin(string(data), env); err != nil {
			return fmt.Errorf("cannot read drop-in %s: %w", path, err)
		}
	}
	for name, value := range env {
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("cannot set the environment: %w", err)
		}
	}
	return nil
}

// parseDropin adds the Environment= assignments of the [Service] section to env
// (systemd.exec(5), systemd.syntax(7)). An empty one clears all before it.
func parseDropin(text string, env map[string]string) error {
	section := ""
	for line := range joinLines(text) {
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
			continue
		case line[0] == '[':
			section = strings.TrimSuffix(line[1:], "]")
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if section != "Service" || !ok || strings.TrimSpace(key) != "Environment" {
			continue
		}
		words, err := splitWords(strings.TrimSpace(value))
		if err != nil {
			return err
		}
		if len(words) == 0 {
			clear(env)
		}
		for _, word := range words {
			name, value, ok := strings.Cut(word, "=")
			if !ok || name == "" {
				return fmt.Errorf("%q is no assignment", word)
			}
			env[name] = value
		}
	}
	return nil
}

// joinLines yields the lines, with those that end in a backslash joined to the next.
func joinLines(text string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		joined := ""
		for line := range strings.Lines(text) {
			line = strings.TrimSpace(line)
			if head, continues := strings.CutSuffix(line, `\`); continues {
				joined += head + " "
				continue
			}
			if !yield(joined + line) {
				return
			}
			joined = ""
		}
	}
}

// splitWords splits at white space, honours quotes and C escapes, and resolves %%. Other
// specifiers of systemd are an error: this reader cannot know what they would become.
func splitWords(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	quote, inWord := byte(0), false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && i+1 < len(s):
			i++
			escaped, known := escapes[s[i]]
			if !known {
				return nil, fmt.Errorf("unknown escape \\%c", s[i])
			}
			word.WriteByte(escaped)
			inWord = true
		case c == '%':
			if i++; i == len(s) || s[i] != '%' {
				return nil, fmt.Errorf("specifier in %q", s)
			}
			word.WriteByte('%')
			inWord = true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(c)
		case c == '"' || c == '\'':
			quote, inWord = c, true
		case c == ' ' || c == '\t':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("quote without end in %q", s)
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}

var escapes = map[byte]byte{'n': '\n', 't': '\t', 's': ' ', '\\': '\\', '"': '"', '\'': '\''}
