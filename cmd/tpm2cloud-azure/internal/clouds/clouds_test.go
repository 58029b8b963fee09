package clouds

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
)

func TestKnown(t *testing.T) {
	for name, want := range map[string][3]string{
		"public":       {"https://management.azure.com", "https://a.azure-devices-provisioning.net", "https://azure-devices-provisioning.net/.default"},
		"china":        {"https://management.chinacloudapi.cn", "https://a.azure-devices-provisioning.cn", "https://azure-devices-provisioning.cn/.default"},
		"usgovernment": {"https://management.usgovcloudapi.net", "https://a.azure-devices-provisioning.us", "https://azure-devices-provisioning.us/.default"},
	} {
		c, err := Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Services[cloud.ResourceManager]; got.Endpoint != want[0] || got.Audience == "" {
			t.Errorf("%s has the resource manager %q for %q", name, got.Endpoint, got.Audience)
		}
		if got := c.ProvisioningScope(strings.TrimPrefix(want[1], "https://")); got != want[2] {
			t.Errorf("%s has the scope %q, want %q", name, got, want[2])
		}
		if c.Private {
			t.Errorf("%s is private", name)
		}
	}
}

func TestFile(t *testing.T) {
	const good = `{"name":"Stack","isActive":true,"endpoints":{"activeDirectory":"https://login.example","gallery":null,
		"activeDirectoryResourceId":"https://management.example/","resourceManager":"https://arm.example"},"suffixes":{}}`
	path := filepath.Join(t.TempDir(), "cloud.json")
	open := func(text string) (Cloud, error) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return Open(path)
	}
	c, err := open(good)
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Services[cloud.ResourceManager]; !c.Private || c.ActiveDirectoryAuthorityHost != "https://login.example" ||
		s.Endpoint != "https://arm.example" || s.Audience != "https://management.example" {
		t.Errorf("the cloud is %+v", c)
	}
	for _, bad := range []string{
		strings.Replace(good, "https://arm", "http://arm", 1), // tokens in clear
		strings.Replace(good, "https://login.example", "", 1),
		strings.Replace(good, `"https://arm.example"`, `null`, 1),
		"{", "",
	} {
		if _, err := open(bad); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := Open("nowhere"); err == nil || !strings.Contains(err.Error(), "china, public, usgovernment") {
		t.Errorf("an unknown name: %v", err)
	}
}
