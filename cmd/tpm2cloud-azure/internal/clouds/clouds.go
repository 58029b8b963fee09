// Package clouds knows the clouds that Azure is: the public one, those of China and of the US government, and others
// that a file describes, in the form in which "az cloud show" prints them.
package clouds

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	// Its initialisation adds the resource managers of the clouds that azcore knows.
	_ "github.com/Azure/azure-sdk-for-go/sdk/azcore/arm/runtime"
)

// Cloud is where the services are.
type Cloud struct {
	cloud.Configuration
	// Private is a cloud that Microsoft Entra's list of authorities does not have, so that it cannot be asked there.
	Private bool
	// ProvisioningAudience is what Entra tokens for the Device Provisioning Service are made for; empty: it is derived
	// from the service's host name.
	ProvisioningAudience string
}

var known = map[string]cloud.Configuration{
	"public":       cloud.AzurePublic,
	"china":        cloud.AzureChina,
	"usgovernment": cloud.AzureGovernment,
}

// Names are the clouds that need no file.
func Names() string { return strings.Join(slices.Sorted(maps.Keys(known)), ", ") }

// Open takes a name, or reads a file.
func Open(nameOrFile string) (Cloud, error) {
	if c, ok := known[nameOrFile]; ok {
		return Cloud{Configuration: c}, nil
	}
	data, err := os.ReadFile(nameOrFile)
	if errors.Is(err, os.ErrNotExist) {
		return Cloud{}, fmt.Errorf("cannot find the cloud %q: it is neither one of %s nor a file", nameOrFile, Names())
	}
	if err != nil {
		return Cloud{}, fmt.Errorf("cannot read the cloud: %w", err)
	}
	c, err := parse(data)
	if err != nil {
		return Cloud{}, fmt.Errorf("cannot read the cloud in %s: %w", nameOrFile, err)
	}
	return c, nil
}

// description is what we need of the output of "az cloud show", and one entry that the Azure CLI has no name for.
type description struct {
	Endpoints struct {
		ActiveDirectory    string `json:"activeDirectory"`
		Audience           string `json:"activeDirectoryResourceId"`
		ResourceManager    string `json:"resourceManager"`
		DeviceProvisioning string `json:"deviceProvisioningResourceId"`
	} `json:"endpoints"`
}

func parse(data []byte) (Cloud, error) {
	var d description
	if err := json.Unmarshal(data, &d); err != nil {
		return Cloud{}, err
	}
	e := d.Endpoints
	for _, needed := range []struct{ key, value string }{
		{"activeDirectory", e.ActiveDirectory}, {"activeDirectoryResourceId", e.Audience}, {"resourceManager", e.ResourceManager},
	} {
		// Tokens and keys go there.
		if u, err := url.Parse(needed.value); err != nil || u.Scheme != "https" || u.Host == "" {
			return Cloud{}, fmt.Errorf("endpoints.%s is %q, and must be an https URL", needed.key, needed.value)
		}
	}
	return Cloud{
		Configuration: cloud.Configuration{
			ActiveDirectoryAuthorityHost: e.ActiveDirectory,
			Services: map[cloud.ServiceName]cloud.ServiceConfiguration{cloud.ResourceManager: {
				Audience: strings.TrimSuffix(e.Audience, "/"), Endpoint: e.ResourceManager,
			}},
		},
		Private:              true,
		ProvisioningAudience: e.DeviceProvisioning,
	}, nil
}

// ProvisioningScope is what an Entra token for the data plane of a Device Provisioning Service must be asked for: its
// audience is the domain below which all these services of a cloud lie.
func (c Cloud) ProvisioningScope(host string) string {
	audience := c.ProvisioningAudience
	if audience == "" {
		_, domain, _ := strings.Cut(host, ".")
		audience = "https://" + domain
	}
	return strings.TrimSuffix(audience, "/") + "/.default"
}
