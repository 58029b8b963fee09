package aziot

import "testing"

func TestParseTokenURI(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		uri  string
		want TokenURI
		out  string // as apply writes it; empty: an error
	}{
		{"pkcs11:token=edge", TokenURI{Token: "edge"}, "pkcs11:token=edge"},
		{"pkcs11:token=edge;object=ldevid?pin-value=1234",
			TokenURI{Token: "edge", Object: "ldevid", HasObject: true, PIN: "1234", HasPIN: true},
			"pkcs11:token=edge;object=ldevid?pin-value=1234"},
		{"pkcs11:object=device-id;token=a%20b", TokenURI{Token: "a b", Object: "device-id", HasObject: true},
			"pkcs11:token=a%20b;object=device%2Did"},
		{"pkcs11:token=a%3bb%3F?pin-value=%26%25%3d", TokenURI{Token: "a;b?", PIN: "&%=", HasPIN: true},
			"pkcs11:token=a%3Bb%3F?pin-value=%26%25%3D"},
		// slot-id wins, whatever the order.
		{"pkcs11:slot-id=1;token=edge", TokenURI{Token: "edge", Slot: 1, HasSlot: true}, "pkcs11:slot-id=1"},
		{"pkcs11:token=edge;slot-id=1", TokenURI{Token: "edge", Slot: 1, HasSlot: true}, "pkcs11:slot-id=1"},
		// Unknown attributes are dropped without a word, pin-source too.
		{"pkcs11:token=edge;id=%01;type=private;serial=1;manufacturer=x?module-path=/x&pin-source=/pin",
			TokenURI{Token: "edge"}, "pkcs11:token=edge"},
		// A value may hold an equals sign; broken escapes and a plus stay what they are.
		{"pkcs11:token=a=b%zz%4+", TokenURI{Token: "a=b%zz%4+"}, "pkcs11:token=a%3Db%25zz%254%2B"},
		{"pkcs11:token=a?pin-value=1?pin-value=2", TokenURI{Token: "a", PIN: "1", HasPIN: true}, "pkcs11:token=a?pin-value=1"},
		{"pkcs11:%74oken=a", TokenURI{Token: "a"}, "pkcs11:token=a"},

		{"pkcs11:", TokenURI{}, ""},
		{"pkcs11:object=ldevid", TokenURI{}, ""},
		{"pkcs11:object=ldevid?token=edge", TokenURI{}, ""}, // a path attribute in the query
		{"pkcs11:slot-id=x", TokenURI{}, ""},
		{"pkcs11:token=%ff", TokenURI{}, ""},
		{"PKCS11:token=edge", TokenURI{}, ""},
		{"file:///x", TokenURI{}, ""},
	} {
		got, err := ParseTokenURI(test.uri)
		if test.out == "" {
			if err == nil {
				t.Errorf("%s: no error", test.uri)
			}
			continue
		}
		if err != nil || got != test.want || got.String() != test.out {
			t.Errorf("%s: %+v, %s, %v", test.uri, got, got, err)
		}
		if again, err := ParseTokenURI(got.String()); err != nil || again.String() != got.String() {
			t.Errorf("%s: %s is read as %+v, %v", test.uri, got, again, err)
		}
	}
}

func TestKeyLocation(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ uri, out string }{
		{"file:///etc/key.pem", "file:///etc/key.pem"},
		{"file://localhost/etc/a%20key.pem", "file:///etc/a%20key.pem"},
		{"pkcs11:token=edge;object=est-id", "pkcs11:token=edge;object=est%2Did"},
		{"file://etc/key.pem", ""},
		{"file:key.pem", ""},
		{"/etc/key.pem", ""},
		{"https://example.com/key.pem", ""},
		{"pkcs11:object=x", ""},
	} {
		l, err := ParseKeyLocation(test.uri)
		if test.out == "" {
			if err == nil {
				t.Errorf("%s: no error", test.uri)
			}
		} else if err != nil || l.String() != test.out {
			t.Errorf("%s: %s, %v", test.uri, l, err)
		}
	}
	if l, err := ParseKeyLocation("file:///etc/a%20key.pem"); err != nil || l.File != "/etc/a key.pem" {
		t.Errorf("%+v, %v", l, err)
	}
}
