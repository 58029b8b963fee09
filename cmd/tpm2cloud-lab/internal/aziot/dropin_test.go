package aziot

import (
	"maps"
	"testing"
)

func TestParseDropin(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text string
		want map[string]string // nil: an error
	}{
		{"[Service]\nEnvironment=A=1\n", map[string]string{"A": "1"}},
		{"[Service]\nEnvironment = A=1 B=2\t'C=3 4'\n", map[string]string{"A": "1", "B": "2", "C": "3 4"}},
		{`[Service]` + "\n" + `Environment="A=x \"y\" \\ z" B="quo"ted C=` + "\n", map[string]string{"A": `x "y" \ z`, "B": "quoted", "C": ""}},
		{"[Service]\nEnvironment=A=swtpm:host=127.0.0.1,port=1\n", map[string]string{"A": "swtpm:host=127.0.0.1,port=1"}},
		{"[Service]\nEnvironment=A=1 \\\n  B=2\n", map[string]string{"A": "1", "B": "2"}},
		{"[Service]\nEnvironment=A=1\nEnvironment=B=2\nEnvironment=A=3\n", map[string]string{"A": "3", "B": "2"}},
		{"[Service]\nEnvironment=A=1\nEnvironment=\nEnvironment=B=2\n", map[string]string{"B": "2"}},
		{"[Service]\nEnvironment=A=50%%\n", map[string]string{"A": "50%"}},
		{"# Environment=A=1\n; Environment=A=1\n[Unit]\nEnvironment=A=1\n[Service]\nUMask=0007\nSupplementaryGroups=tss\n", map[string]string{}},
		{"[Service]\nEnvironment=A=%h\n", nil},
		{"[Service]\nEnvironment=A\n", nil},
		{"[Service]\nEnvironment=\"A=1\n", nil},
		{"[Service]\nEnvironment=A=\\q\n", nil},
	} {
		got := make(map[string]string)
		err := parseDropin(test.text, got)
		if (err != nil) != (test.want == nil) || err == nil && !maps.Equal(got, test.want) {
			t.Errorf("%q: %v, %v", test.text, got, err)
		}
	}
}
