// Package arm speaks with Azure's resource manager, through its SDK: the resource group, the IoT Hub, the Device
// Provisioning Service and the CA certificates in it. It looks and acts, and decides nothing. A thing that is not there is
// nil, not an error.
package arm

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azarm "github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	armdps "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/deviceprovisioningservices/armdeviceprovisioningservices"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/iothub/armiothub"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/answer"
	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/sas"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// The tag by which what we made is known.
const (
	tagName  = "managed-by"
	tagValue = "tpm2cloud"
)

func tags() map[string]*string { return map[string]*string{tagName: to.Ptr(tagValue)} }

// Ours tells whether something with these tags was made by us.
func Ours(tags map[string]*string) bool {
	for name, value := range tags { // Azure keeps the case of names, and does not mind it
		if strings.EqualFold(name, tagName) && value != nil && *value == tagValue {
			return true
		}
	}
	return false
}

// Client is for one subscription.
type Client struct {
	groups       *armresources.ResourceGroupsClient
	resources    *armresources.Client
	hubs         *armiothub.ResourceClient
	services     *armdps.IotDpsResourceClient
	certificates *armdps.DpsCertificateClient

	// Poll is the time between two looks at an operation, where Azure does not say.
	Poll time.Duration
	// Say is told how a long operation goes on.
	Say func(format string, args ...any)
}

// New makes a client.
func New(subscription string, credential azcore.TokenCredential, options *azarm.ClientOptions) (*Client, error) {
	resources, err := armresources.NewClientFactory(subscription, credential, options)
	if err != nil {
		return nil, err
	}
	hubs, err := armiothub.NewResourceClient(subscription, credential, options)
	if err != nil {
		return nil, err
	}
	services, err := armdps.NewClientFactory(subscription, credential, options)
	if err != nil {
		return nil, err
	}
	return &Client{
		groups: resources.NewResourceGroupsClient(), resources: resources.NewClient(), hubs: hubs,
		services: services.NewIotDpsResourceClient(), certificates: services.NewDpsCertificateClient(),
		Poll: 10 * time.Second, Say: func(string, ...any) {},
	}, nil
}

// found makes a thing that is not there nil.
func found[T any](do string, thing T, err error) (*T, error) {
	if answer.NotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, answer.Failed(do, err)
	}
	return &thing, nil
}

// --- resource group -----------------------------------------------------------

// Group looks for a resource group.
func (c *Client) Group(ctx context.Context, name string) (*armresources.ResourceGroup, error) {
	r, err := c.groups.Get(ctx, name, nil)
	return found("read the resource group "+name, r.ResourceGroup, err)
}

// CreateGroup makes a resource group.
func (c *Client) CreateGroup(ctx context.Context, name, location string) error {
	_, err := c.groups.CreateOrUpdate(ctx, name, armresources.ResourceGroup{Location: &location, Tags: tags()}, nil)
	return answer.Failed("create the resource group "+name, err)
}

// DeleteGroup deletes a resource group and all that is in it.
func (c *Client) DeleteGroup(ctx context.Context, name string) error {
	do := "delete the resource group " + name
	poller, err := c.groups.BeginDelete(ctx, name, nil)
	return waitUntilGone(ctx, c, do, poller, err)
}

// Resource is one of a resource group.
type Resource struct {
	Name, Type string
	Ours       bool
}

// Resources lists what is in a resource group.
func (c *Client) Resources(ctx context.Context, group string) ([]Resource, error) {
	var all []Resource
	for pager := c.resources.NewListByResourceGroupPager(group, nil); pager.More(); {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return nil, answer.Failed("list what is in the resource group "+group, err)
		}
		for _, r := range page.Value {
			all = append(all, Resource{value(r.Name), value(r.Type), Ours(r.Tags)})
		}
	}
	return all, nil
}

// --- IoT Hub ------------------------------------------------------------------

// Hub looks for an IoT Hub.
func (c *Client) Hub(ctx context.Context, group, name string) (*armiothub.Description, error) {
	r, err := c.hubs.Get(ctx, group, name, nil)
	return found("read the IoT Hub "+name, r.Description, err)
}

// HubNameFree asks whether there is a hub of a name in all of Azure, which is an error. Only who has a right to the whole
// subscription may ask: to others it is not known, and they are told when they make it.
func (c *Client) HubNameFree(ctx context.Context, name string) (known bool, err error) {
	do := "create the IoT Hub " + name
	free, err := c.hubs.CheckNameAvailability(ctx, armiothub.OperationInputs{Name: &name}, nil)
	if answer.Forbidden(err) {
		return false, nil
	}
	if err != nil {
		return false, answer.Failed(do, err)
	}
	if free.NameAvailable != nil && !*free.NameAvailable {
		return true, taken(do, value(free.Message), "--hub")
	}
	return true, nil
}

// CreateHub makes an IoT Hub.
func (c *Client) CreateHub(ctx context.Context, group, name, location, sku string, units int64) error {
	do := "create the IoT Hub " + name
	return orTaken(do, "--hub", c.putHub(ctx, do, group, name, armiothub.Description{
		Location: &location, Tags: tags(), Properties: &armiothub.Properties{},
		SKU: &armiothub.SKUInfo{Name: to.Ptr(armiothub.IotHubSKU(sku)), Capacity: &units},
	}))
}

// RepairHub has Azure try once more what it could not do, with the hub as it was read.
func (c *Client) RepairHub(ctx context.Context, group string, hub *armiothub.Description) error {
	return c.putHub(ctx, "repair the IoT Hub "+value(hub.Name), group, value(hub.Name), *hub)
}

func (c *Client) putHub(ctx context.Context, do, group, name string, description armiothub.Description) error {
	poller, err := c.hubs.BeginCreateOrUpdate(ctx, group, name, description, nil)
	return wait(ctx, c, do, poller, err)
}

func taken(do, why, flag string) error {
	if why == "" {
		why = "the name is taken"
	}
	return step.As(step.ServerRefused, "choose another name with "+flag+": it must be the only one in all of Azure", fmt.Errorf("cannot %s: %s", do, strings.TrimSuffix(why, ".")))
}

// orTaken is the error of making something, which may be that its name is taken.
func orTaken(do, flag string, err error) error {
	if e, ok := errors.AsType[*answer.Error](err); ok && e.NameTaken() {
		return taken(do, e.Message, flag)
	}
	return err
}

// hubPolicy is the one that "az iot dps linked-hub create" takes as well.
const hubPolicy = "iothubowner"

// HubConnection is the connection string of a hub, a secret.
func (c *Client) HubConnection(ctx context.Context, group string, hub *armiothub.Description) (string, error) {
	name := value(hub.Name)
	key, err := c.hubs.GetKeysForKeyName(ctx, group, name, hubPolicy, nil)
	if err != nil {
		return "", answer.Failed("read the keys of the IoT Hub "+name, err)
	}
	return fmt.Sprintf("HostName=%s;SharedAccessKeyName=%s;SharedAccessKey=%s", value(hub.Properties.HostName), hubPolicy, value(key.PrimaryKey)), nil
}

// DeleteHub deletes an IoT Hub with its devices.
func (c *Client) DeleteHub(ctx context.Context, group, name string) error {
	do := "delete the IoT Hub " + name
	poller, err := c.hubs.BeginDelete(ctx, group, name, nil)
	return waitUntilGone(ctx, c, do, poller, err)
}

// --- Device Provisioning Service ----------------------------------------------

// Service looks for a Device Provisioning Service.
func (c *Client) Service(ctx context.Context, group, name string) (*armdps.ProvisioningServiceDescription, error) {
	r, err := c.services.Get(ctx, name, group, nil)
	return found("read the Device Provisioning Service "+name, r.ProvisioningServiceDescription, err)
}

// CreateService makes a Device Provisioning Service with a hub. Who may not ask whether the name is free is told now.
func (c *Client) CreateService(ctx context.Context, group, name, location string, hub *armdps.IotHubDefinitionDescription) error {
	do := "create the Device Provisioning Service " + name
	free, err := c.services.CheckProvisioningServiceNameAvailability(ctx, armdps.OperationInputs{Name: &name}, nil)
	if err != nil && !answer.Forbidden(err) {
		return answer.Failed(do, err)
	}
	if free.NameAvailable != nil && !*free.NameAvailable {
		return taken(do, value(free.Message), "--dps")
	}
	return orTaken(do, "--dps", c.putService(ctx, do, group, name, armdps.ProvisioningServiceDescription{
		Location: &location, Tags: tags(), SKU: &armdps.IotDpsSKUInfo{Name: to.Ptr(armdps.IotDpsSKUS1), Capacity: to.Ptr[int64](1)},
		Properties: &armdps.IotDpsPropertiesDescription{IotHubs: []*armdps.IotHubDefinitionDescription{hub}},
	}))
}

// UpdateService gives a service that was read the link to a hub, in the place of one with the same host name, and leaves the
// rest as it is. The keys of other links come masked, and go back so; Azure knows them.
func (c *Client) UpdateService(ctx context.Context, group string, service *armdps.ProvisioningServiceDescription, hubHost string, hub *armdps.IotHubDefinitionDescription) error {
	links := slices.DeleteFunc(slices.Clone(service.Properties.IotHubs), func(link *armdps.IotHubDefinitionDescription) bool {
		return link != nil && strings.EqualFold(value(link.Name), hubHost)
	})
	return c.putLinks(ctx, group, service, append(links, hub))
}

// UnlinkHubs takes the links to hubs, which are given by their names, from a service that was read.
func (c *Client) UnlinkHubs(ctx context.Context, group string, service *armdps.ProvisioningServiceDescription, hubs ...string) error {
	links := slices.DeleteFunc(slices.Clone(service.Properties.IotHubs), func(link *armdps.IotHubDefinitionDescription) bool {
		return slices.ContainsFunc(hubs, func(hub string) bool { return LinksTo(link, hub) })
	})
	return c.putLinks(ctx, group, service, links)
}

// LinksTo tells whether a link of a service is that to the hub of a name, which may be gone: its host name begins with it.
func LinksTo(link *armdps.IotHubDefinitionDescription, hub string) bool {
	if link == nil {
		return false
	}
	name, _, _ := strings.Cut(value(link.Name), ".")
	return strings.EqualFold(name, hub)
}

func (c *Client) putLinks(ctx context.Context, group string, service *armdps.ProvisioningServiceDescription, links []*armdps.IotHubDefinitionDescription) error {
	changed, properties := *service, *service.Properties
	properties.IotHubs = links
	changed.Properties = &properties
	return c.putService(ctx, "update the Device Provisioning Service "+value(service.Name), group, value(service.Name), changed)
}

func (c *Client) putService(ctx context.Context, do, group, name string, description armdps.ProvisioningServiceDescription) error {
	poller, err := c.services.BeginCreateOrUpdate(ctx, group, name, description, nil)
	return wait(ctx, c, do, poller, err)
}

// servicePolicy is the policy that a service is made with, with all rights.
const servicePolicy = "provisioningserviceowner"

// ServiceKey is the key to a service's data plane.
func (c *Client) ServiceKey(ctx context.Context, group, name string) (sas.Key, error) {
	do := "read the keys of the Device Provisioning Service " + name
	r, err := c.services.ListKeysForKeyName(ctx, name, servicePolicy, group, nil)
	if err != nil {
		return sas.Key{}, step.As(step.ServerRefused, "where its keys are not to be used, --auth login takes the account that is logged in", answer.Failed(do, err))
	}
	key, err := sas.NewKey(servicePolicy, value(r.PrimaryKey))
	return key, answer.Failed(do, err)
}

// DeleteService deletes a Device Provisioning Service with its enrolments.
func (c *Client) DeleteService(ctx context.Context, group, name string) error {
	do := "delete the Device Provisioning Service " + name
	poller, err := c.services.BeginDelete(ctx, name, group, nil)
	return waitUntilGone(ctx, c, do, poller, err)
}

// --- CA certificates ----------------------------------------------------------

// Certificates lists the CA certificates of a service.
func (c *Client) Certificates(ctx context.Context, group, service string) ([]*armdps.CertificateResponse, error) {
	r, err := c.certificates.List(ctx, group, service, nil)
	return r.Value, answer.Failed("list the CA certificates of the Device Provisioning Service "+service, err)
}

// PutCertificate uploads a CA certificate, or the one with an etag anew. With verified, the uploader says that he has its
// key, and the service believes it.
func (c *Client) PutCertificate(ctx context.Context, group, service, name string, der []byte, verified bool, etag *string) (*armdps.CertificateResponse, error) {
	r, err := c.certificates.CreateOrUpdate(ctx, group, service, name,
		armdps.CertificateResponse{Properties: &armdps.CertificateProperties{Certificate: der, IsVerified: &verified}},
		&armdps.DpsCertificateClientCreateOrUpdateOptions{IfMatch: etag})
	return &r.CertificateResponse, answer.Failed("upload the CA certificate "+name, err)
}

// Prove has the service verify a certificate: proof makes one for its code, signed with the CA's key.
func (c *Client) Prove(ctx context.Context, group, service, name, etag string, proof func(code string) ([]byte, error)) error {
	do := "verify the CA certificate " + name
	code, err := c.certificates.GenerateVerificationCode(ctx, name, etag, group, service, nil)
	if err != nil {
		return answer.Failed(do, err)
	}
	if code.Properties == nil || value(code.Properties.VerificationCode) == "" {
		return step.Fail(step.ServerRefused, "cannot %s: the service gave no verification code", do)
	}
	der, err := proof(*code.Properties.VerificationCode)
	if err != nil {
		return err
	}
	_, err = c.certificates.VerifyCertificate(ctx, name, value(code.Etag), group, service, armdps.VerificationCodeRequest{Certificate: to.Ptr(base64.StdEncoding.EncodeToString(der))}, nil)
	return answer.Failed(do, err)
}

// --- long operations ----------------------------------------------------------

// tick is the time between two lines about an operation that goes on.
const tick = 15 * time.Second

// wait waits until an operation that was begun has ended.
func wait[T any](ctx context.Context, c *Client, do string, poller *runtime.Poller[T], err error) error {
	return answer.Failed(do, poll(ctx, c, do, poller, err))
}

// waitUntilGone waits for the end of a deletion. Hubs and services answer to the last question about it that there is no
// such thing, which the SDK takes for an error; and what is gone at the first request is gone as well.
func waitUntilGone[T any](ctx context.Context, c *Client, do string, poller *runtime.Poller[T], err error) error {
	if err = poll(ctx, c, do, poller, err); answer.Gone(err) {
		return nil
	}
	return answer.Failed(do, err)
}

func poll[T any](ctx context.Context, c *Client, do string, poller *runtime.Poller[T], err error) error {
	if err != nil {
		return err
	}
	begin := time.Now()
	c.Say("waiting: %s", do)
	done := make(chan struct{})
	go func() {
		ticker := time.NewTicker(tick)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				c.Say("waiting: %s: %s so far", do, time.Since(begin).Round(time.Second))
			case <-done:
				return
			}
		}
	}()
	_, err = poller.PollUntilDone(ctx, &runtime.PollUntilDoneOptions{Frequency: max(c.Poll, time.Second)})
	close(done)
	return err
}

func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
