package sas

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestToken has openssl make the same signature.
func TestToken(t *testing.T) {
	const secret = "c2VjcmV0IGtleSB3aXRoIMO8Cg=="
	key, err := NewKey("provisioningserviceowner", secret)
	if err != nil {
		t.Fatal(err)
	}
	got := key.Token("a-dps.azure-devices-provisioning.net:443", time.Unix(1800000000, 999))

	cmd := exec.Command("sh", "-c", `printf '%s\n%s' a-dps.azure-devices-provisioning.net%3A443 1800000000 |
		openssl dgst -sha256 -mac HMAC -macopt hexkey:"$(printf %s "$1" | openssl base64 -d -A | od -An -tx1 | tr -d ' \n')" -binary | openssl base64 -A`, "sh", secret)
	signature, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl: %v", err)
	}
	encoded := strings.NewReplacer("+", "%2B", "/", "%2F", "=", "%3D").Replace(string(signature))
	want := "SharedAccessSignature sr=a-dps.azure-devices-provisioning.net%3A443&sig=" + encoded + "&se=1800000000&skn=provisioningserviceowner"
	if got != want {
		t.Errorf("token is\n%s, want\n%s", got, want)
	}
}

func TestKeyIsNotPrinted(t *testing.T) {
	const secret = "c2VjcmV0"
	key, err := NewKey("owner", secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if said := fmt.Sprintf(verb, key); said != "key of owner" {
			t.Errorf("%s prints %q", verb, said)
		}
	}
	for _, c := range [][2]string{{"owner", "c2Vjc!mV0"}, {"owner", ""}, {"", secret}} {
		if _, err := NewKey(c[0], c[1]); err == nil {
			t.Errorf("NewKey takes %q", c)
		} else if c[1] != "" && strings.Contains(err.Error(), c[1][:4]) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}
