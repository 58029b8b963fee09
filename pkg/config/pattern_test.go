package config

import "testing"

func TestExpand(t *testing.T) {
	var asked []string
	got, err := Expand("a-{serial}.{mac}-{serial}", func(p string) (string, error) {
		asked = append(asked, p)
		return "<" + p + "{model}>", nil
	})
	if want := "a-<serial{model}>.<mac{model}>-<serial{model}>"; got != want || err != nil {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if len(asked) != 3 {
		t.Errorf("asked for %q", asked)
	}
	_, err = Expand("{uuid}", nil)
	if want := `"{uuid}" has a placeholder that does not exist; allowed: {hash}, {serial}, {model}, {mac}, {machine-id}, {ek}`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
