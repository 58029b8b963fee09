// Package dps speaks with the data plane of a Device Provisioning Service, for which there is no SDK for Go: the
// enrolment groups, and the registrations of their devices (REST API 2021-10-01).
//
//	GET  https://HOST/enrollmentGroups/{id}
//	PUT  https://HOST/enrollmentGroups/{id}     If-Match: the etag, when it exists
//	POST https://HOST/registrations/{id}/query  in pages: x-ms-continuation
//
// Requests go through the pipeline of azcore, which tries again what the service was too busy for, when the service says
// (Retry-After).
package dps

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/answer"
	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/sas"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

const apiVersion = "2021-10-01"

// Client is for one service.
type Client struct {
	host     string
	pipeline runtime.Pipeline
	login    bool // it is authorised by the account that is logged in
}

// New makes a client for the service at a host name. Authorisation is by WithKey or WithLogin.
func New(host string, authorisation policy.Policy, options policy.ClientOptions) *Client {
	_, key := authorisation.(keyPolicy)
	return &Client{host, runtime.NewPipeline("tpm2cloud-azure", "v1.0.0", runtime.PipelineOptions{PerRetry: []policy.Policy{authorisation}}, &options), !key}
}

// WithLogin authorises by Microsoft Entra: the account needs a role at the service.
func WithLogin(credential azcore.TokenCredential, scope string) policy.Policy {
	return runtime.NewBearerTokenPolicy(credential, []string{scope}, nil)
}

// WithKey authorises by a shared access policy of the service.
func WithKey(key sas.Key) policy.Policy { return keyPolicy{key} }

type keyPolicy struct{ key sas.Key }

// lifetime of a token. It is made anew for each try, and is so long for clocks that differ.
const lifetime = 30 * time.Minute

func (p keyPolicy) Do(r *policy.Request) (*http.Response, error) {
	r.Raw().Header.Set("Authorization", p.key.Token(r.Raw().URL.Host, time.Now().Add(lifetime)))
	return r.Next()
}

// Group is an enrolment group. What is not of interest here is kept as it came, and sent back.
type Group struct {
	ID                 string             `json:"enrollmentGroupId"`
	Attestation        Attestation        `json:"attestation"`
	Capabilities       *Capabilities      `json:"capabilities,omitempty"`
	ProvisioningStatus string             `json:"provisioningStatus,omitempty"` // enabled or disabled
	AllocationPolicy   string             `json:"allocationPolicy,omitempty"`
	ReprovisionPolicy  *ReprovisionPolicy `json:"reprovisionPolicy,omitempty"`
	ETag               string             `json:"etag,omitempty"`

	rest map[string]json.RawMessage
}

// Attestation is how devices show that they are of the group.
type Attestation struct {
	Type string `json:"type"` // x509, or something that is not for us
	X509 *X509  `json:"x509,omitempty"`
}

// X509 names CA certificates of the service, or has certificates in it.
type X509 struct {
	References *References     `json:"caReferences,omitempty"`
	Signing    json.RawMessage `json:"signingCertificates,omitempty"`
}

// References are the names of CA certificates; devices of either one are of the group.
type References struct {
	Primary   string `json:"primary,omitempty"`
	Secondary string `json:"secondary,omitempty"`
}

// Capabilities of the group's devices.
type Capabilities struct {
	IoTEdge bool `json:"iotEdge"`
}

// ReprovisionPolicy says what happens when a device registers again.
type ReprovisionPolicy struct {
	UpdateHubAssignment bool `json:"updateHubAssignment"`
	MigrateDeviceData   bool `json:"migrateDeviceData"`
}

// UnmarshalJSON implements [json.Unmarshaler].
func (g *Group) UnmarshalJSON(data []byte) error {
	type plain Group
	if err := json.Unmarshal(data, (*plain)(g)); err != nil {
		return err
	}
	return json.Unmarshal(data, &g.rest)
}

// MarshalJSON implements [json.Marshaler].
func (g Group) MarshalJSON() ([]byte, error) {
	type plain Group
	known, err := json.Marshal(plain(g))
	if err != nil {
		return nil, err
	}
	all := maps.Clone(g.rest)
	if err := json.Unmarshal(known, &all); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// Group reads an enrolment group; nil is one that does not exist.
func (c *Client) Group(ctx context.Context, id string) (*Group, error) {
	g := new(Group)
	_, err := c.do(ctx, http.MethodGet, nil, g, nil, "enrollmentGroups", id)
	if answer.NotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, c.failed("read the enrolment group "+id, err)
	}
	return g, nil
}

// Put makes an enrolment group, or changes the one that was read: if somebody else has changed it since, this fails.
func (c *Client) Put(ctx context.Context, g *Group) error {
	header := http.Header{}
	if g.ETag != "" {
		header.Set("If-Match", `"`+strings.Trim(g.ETag, `"`)+`"`)
	}
	_, err := c.do(ctx, http.MethodPut, header, nil, g, "enrollmentGroups", g.ID)
	return c.failed("write the enrolment group "+g.ID, err)
}

// Registration is what the service knows of a device.
type Registration struct {
	ID           string `json:"registrationId"`
	DeviceID     string `json:"deviceId,omitempty"`
	AssignedHub  string `json:"assignedHub,omitempty"`
	Status       string `json:"status"` // unassigned, assigning, assigned, failed, disabled
	ErrorCode    int    `json:"errorCode,omitempty"`
	ErrorMessage string `json:"errorMessage,omitempty"`
	Created      string `json:"createdDateTimeUtc,omitempty"`
	Updated      string `json:"lastUpdatedDateTimeUtc,omitempty"`
}

// maxPages bounds what a service could go on with for ever: at 100 devices a page it is a million of them.
const maxPages = 10_000

// Registrations lists the devices that registered with a group.
func (c *Client) Registrations(ctx context.Context, group string) ([]Registration, error) {
	do := "list the registrations of the enrolment group " + group
	all := []Registration{}
	header := http.Header{"X-Ms-Max-Item-Count": {"100"}}
	for range maxPages {
		var page []Registration
		response, err := c.do(ctx, http.MethodPost, header, &page, nil, "registrations", group, "query")
		if err != nil {
			return nil, c.failed(do, err)
		}
		all = append(all, page...)
		next := response.Header.Get("x-ms-continuation")
		if next == "" {
			return all, nil
		}
		header.Set("x-ms-continuation", next)
	}
	return nil, fmt.Errorf("cannot %s: there is no end to them after %d pages", do, maxPages)
}

// failed is an error with what to do; of the service's own roles the resource manager knows nothing.
func (c *Client) failed(do string, err error) error {
	err = answer.Failed(do, err)
	if step.ClassOf(err) != step.Permission || err == nil {
		return err
	}
	if c.login {
		return step.Hint(err, "the account that is logged in needs the role Device Provisioning Service Data Contributor at the service (to look, Data Reader); or take --auth key")
	}
	return step.Hint(err, "the service does not take its own key: is this machine's clock right? Otherwise take --auth login")
}

// do sends a request and reads the answer, if it is 200.
func (c *Client) do(ctx context.Context, method string, header http.Header, out, in any, path ...string) (*http.Response, error) {
	for i := range path {
		path[i] = url.PathEscape(path[i])
	}
	request, err := runtime.NewRequest(ctx, method, "https://"+c.host+"/"+strings.Join(path, "/")+"?api-version="+apiVersion)
	if err != nil {
		return nil, err
	}
	maps.Copy(request.Raw().Header, header)
	request.Raw().Header.Set("Accept", "application/json")
	if in != nil {
		if err := runtime.MarshalAsJSON(request, in); err != nil {
			return nil, err
		}
	}
	response, err := c.pipeline.Do(request)
	if err != nil {
		return nil, err
	}
	if !runtime.HasStatusCode(response, http.StatusOK) {
		return nil, runtime.NewResponseError(response)
	}
	if out != nil {
		return response, runtime.UnmarshalAsJSON(response, out)
	}
	return response, nil
}
