package main

import (
	"context"
	"crypto/sha1"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azfake "github.com/Azure/azure-sdk-for-go/sdk/azcore/fake"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	armdps "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/deviceprovisioningservices/armdeviceprovisioningservices"
	dpsfake "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/deviceprovisioningservices/armdeviceprovisioningservices/fake"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/iothub/armiothub"
	hubfake "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/iothub/armiothub/fake"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources"
	groupfake "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources/fake"
)

// resources are what is in the subscription. The mutex is held while a request is served, its answer included, because
// the answers of the SDK's fakes point into what is here.
type resources struct {
	mu       sync.Mutex
	groups   map[string]*armresources.ResourceGroup
	hubs     map[string]*armiothub.Description
	services map[string]*service
	others   []*armresources.GenericResourceExpanded
	taken    map[string]bool // names that somebody else in the world has

	dpsHost string
	// How often a long operation is still at work; and what becomes of it.
	polls   int
	failure map[string]string
	// unattested: Azure does not take anybody's word for the possession of a CA.
	unattested    bool
	moreThanOne   bool // subscriptions
	verifications int
}

// service is a Device Provisioning Service with all that is in it.
type service struct {
	armdps.ProvisioningServiceDescription
	certificates  map[string]*armdps.CertificateResponse
	codes         map[string]string
	groups        map[string]map[string]any // enrolment groups
	registrations []map[string]any
}

const (
	hubKey = "aHViIGtleSBodWIga2V5IGh1YiBrZXk="
	dpsKey = "ZHBzIGtleSBkcHMga2V5IGRwcyBrZXk="
)

func newResources(dpsHost string) *resources {
	return &resources{groups: map[string]*armresources.ResourceGroup{}, hubs: map[string]*armiothub.Description{}, services: map[string]*service{},
		taken: map[string]bool{}, dpsHost: dpsHost, polls: 1}
}

func (s *resources) subscriptions() any {
	list := []map[string]string{
		{"subscriptionId": subscription, "displayName": "Fleet", "state": "Enabled"},
		{"subscriptionId": "00000000-0000-0000-0000-000000000000", "displayName": "Old", "state": "Disabled"},
	}
	if s.moreThanOne {
		list[1]["state"] = "Enabled"
	}
	return map[string]any{"value": list}
}

// armRoutes are all the requests that this program may send.
func armRoutes(s *resources) []route {
	groups := groupfake.NewServerFactoryTransport(&groupfake.ServerFactory{ResourceGroupsServer: s.groupServer(), Server: s.listServer()})
	hubs := hubfake.NewServerFactoryTransport(&hubfake.ServerFactory{ResourceServer: s.hubServer()})
	services := dpsfake.NewServerFactoryTransport(&dpsfake.ServerFactory{IotDpsResourceServer: s.serviceServer(), DpsCertificateServer: s.certificateServer()})
	var routes []route
	add := func(fake transporter, version, method, path, operation string) {
		path = strings.NewReplacer("{sub}", "/subscriptions/[^/]+", "{devices}", `/resourceGroups/[^/]+/providers/Microsoft\.Devices`).Replace(path)
		routes = append(routes, route{method, version, regexp.MustCompile("^" + path + "$"), operation, fake})
	}
	const groupVersion, hubVersion, dpsVersion = "2021-04-01", "2023-06-30", "2022-02-05"
	for _, method := range []struct{ method, operation string }{
		{"GET", "ResourceGroupsClient.Get"}, {"PUT", "ResourceGroupsClient.CreateOrUpdate"}, {"DELETE", "ResourceGroupsClient.BeginDelete"},
	} {
		add(groups, groupVersion, method.method, "{sub}/resourcegroups/[^/]+", method.operation)
	}
	add(groups, groupVersion, "GET", "{sub}/resourceGroups/[^/]+/resources", "Client.NewListByResourceGroupPager")
	add(hubs, hubVersion, "POST", `{sub}/providers/Microsoft\.Devices/checkNameAvailability`, "ResourceClient.CheckNameAvailability")
	add(hubs, hubVersion, "POST", "{sub}{devices}/IotHubs/[^/]+/IotHubKeys/[^/]+/listkeys", "ResourceClient.GetKeysForKeyName")
	for _, method := range []struct{ method, operation string }{
		{"GET", "ResourceClient.Get"}, {"PUT", "ResourceClient.BeginCreateOrUpdate"}, {"DELETE", "ResourceClient.BeginDelete"},
	} {
		add(hubs, hubVersion, method.method, "{sub}{devices}/IotHubs/[^/]+", method.operation)
	}
	add(services, dpsVersion, "POST", `{sub}/providers/Microsoft\.Devices/checkProvisioningServiceNameAvailability`, "IotDpsResourceClient.CheckProvisioningServiceNameAvailability")
	add(services, dpsVersion, "POST", "{sub}{devices}/provisioningServices/[^/]+/keys/[^/]+/listkeys", "IotDpsResourceClient.ListKeysForKeyName")
	for _, method := range []struct{ method, operation string }{
		{"GET", "IotDpsResourceClient.Get"}, {"PUT", "IotDpsResourceClient.BeginCreateOrUpdate"}, {"DELETE", "IotDpsResourceClient.BeginDelete"},
	} {
		add(services, dpsVersion, method.method, "{sub}{devices}/provisioningServices/[^/]+", method.operation)
	}
	const certificates = "{sub}{devices}/provisioningServices/[^/]+/certificates"
	add(services, dpsVersion, "GET", certificates, "DpsCertificateClient.List")
	add(services, dpsVersion, "PUT", certificates+"/[^/]+", "DpsCertificateClient.CreateOrUpdate")
	add(services, dpsVersion, "POST", certificates+"/[^/]+/generateVerificationCode", "DpsCertificateClient.GenerateVerificationCode")
	add(services, dpsVersion, "POST", certificates+"/[^/]+/verify", "DpsCertificateClient.VerifyCertificate")
	return routes
}

func withOperation(ctx context.Context, operation string) context.Context {
	return context.WithValue(ctx, runtime.CtxAPINameKey{}, operation)
}

// fakeError is how the resource manager says what a fake has said with an error.
func fakeError(w http.ResponseWriter, err error) {
	if known, ok := errors.AsType[*azcore.ResponseError](err); ok {
		armError(w, known.StatusCode, known.ErrorCode, "The fake says "+known.ErrorCode+".")
		return
	}
	armError(w, http.StatusBadRequest, "BadRequest", err.Error())
}

func responder[T any](status int, v T) (r azfake.Responder[T], e azfake.ErrorResponder) {
	r.SetResponse(status, v, nil)
	return r, e
}

func refuse[T any](status int, code string) (r azfake.Responder[T], e azfake.ErrorResponder) {
	e.SetResponseError(status, code)
	return r, e
}

func refuseLong[T any](status int, code string) (p azfake.PollerResponder[T], e azfake.ErrorResponder) {
	e.SetResponseError(status, code)
	return p, e
}

// long is an operation that is at work for some polls; done is called when it is begun, because only the last of its answers
// tells of the result.
func long[T any](s *resources, status int, v T) (p azfake.PollerResponder[T], e azfake.ErrorResponder) {
	for range s.polls + 1 {
		p.AddNonTerminalResponse(status, nil)
	}
	if s.failure != nil {
		p.SetTerminalError(http.StatusBadRequest, s.failure["code"])
		return p, e
	}
	p.SetTerminalResponse(http.StatusOK, v, nil)
	return p, e
}

// --- resource groups ----------------------------------------------------------

func (s *resources) groupServer() groupfake.ResourceGroupsServer {
	return groupfake.ResourceGroupsServer{
		Get: func(_ context.Context, name string, _ *armresources.ResourceGroupsClientGetOptions) (azfake.Responder[armresources.ResourceGroupsClientGetResponse], azfake.ErrorResponder) {
			if g := s.groups[name]; g != nil {
				return responder(http.StatusOK, armresources.ResourceGroupsClientGetResponse{ResourceGroup: *g})
			}
			return refuse[armresources.ResourceGroupsClientGetResponse](http.StatusNotFound, "ResourceGroupNotFound")
		},
		CreateOrUpdate: func(_ context.Context, name string, g armresources.ResourceGroup, _ *armresources.ResourceGroupsClientCreateOrUpdateOptions) (azfake.Responder[armresources.ResourceGroupsClientCreateOrUpdateResponse], azfake.ErrorResponder) {
			g.Name, g.Properties = &name, &armresources.ResourceGroupProperties{ProvisioningState: to.Ptr("Succeeded")}
			s.groups[name] = &g
			return responder(http.StatusCreated, armresources.ResourceGroupsClientCreateOrUpdateResponse{ResourceGroup: g})
		},
		BeginDelete: func(_ context.Context, name string, _ *armresources.ResourceGroupsClientBeginDeleteOptions) (azfake.PollerResponder[armresources.ResourceGroupsClientDeleteResponse], azfake.ErrorResponder) {
			delete(s.groups, name)
			clear(s.hubs)
			clear(s.services)
			return long(s, http.StatusAccepted, armresources.ResourceGroupsClientDeleteResponse{})
		},
	}
}

func (s *resources) listServer() groupfake.Server {
	return groupfake.Server{
		NewListByResourceGroupPager: func(string, *armresources.ClientListByResourceGroupOptions) (p azfake.PagerResponder[armresources.ClientListByResourceGroupResponse]) {
			all := s.others
			for name, h := range s.hubs {
				all = append(all, &armresources.GenericResourceExpanded{Name: &name, Type: to.Ptr("Microsoft.Devices/IotHubs"), Tags: h.Tags})
			}
			for name, d := range s.services {
				all = append(all, &armresources.GenericResourceExpanded{Name: &name, Type: to.Ptr("Microsoft.Devices/provisioningServices"), Tags: d.Tags})
			}
			p.AddPage(http.StatusOK, armresources.ClientListByResourceGroupResponse{ResourceListResult: armresources.ResourceListResult{Value: all}}, nil)
			return p
		},
	}
}

// --- IoT Hubs -----------------------------------------------------------------

func (s *resources) hubServer() hubfake.ResourceServer {
	return hubfake.ResourceServer{
		CheckNameAvailability: func(_ context.Context, in armiothub.OperationInputs, _ *armiothub.ResourceClientCheckNameAvailabilityOptions) (azfake.Responder[armiothub.ResourceClientCheckNameAvailabilityResponse], azfake.ErrorResponder) {
			r := armiothub.ResourceClientCheckNameAvailabilityResponse{}
			r.NameAvailable = to.Ptr(!s.taken[*in.Name] && s.hubs[*in.Name] == nil)
			if !*r.NameAvailable {
				r.Reason, r.Message = to.Ptr(armiothub.IotHubNameUnavailabilityReasonAlreadyExists), to.Ptr("IotHub name '"+*in.Name+"' is not available.")
			}
			return responder(http.StatusOK, r)
		},
		Get: func(_ context.Context, _, name string, _ *armiothub.ResourceClientGetOptions) (azfake.Responder[armiothub.ResourceClientGetResponse], azfake.ErrorResponder) {
			if h := s.hubs[name]; h != nil {
				return responder(http.StatusOK, armiothub.ResourceClientGetResponse{Description: *h})
			}
			return refuse[armiothub.ResourceClientGetResponse](http.StatusNotFound, "ResourceNotFound")
		},
		BeginCreateOrUpdate: func(_ context.Context, group, name string, h armiothub.Description, _ *armiothub.ResourceClientBeginCreateOrUpdateOptions) (azfake.PollerResponder[armiothub.ResourceClientCreateOrUpdateResponse], azfake.ErrorResponder) {
			if s.taken[name] {
				return refuseLong[armiothub.ResourceClientCreateOrUpdateResponse](http.StatusConflict, "IotHubNameNotAvailable")
			}
			if h.Properties == nil {
				h.Properties = &armiothub.Properties{}
			}
			h.Name, h.ID = &name, to.Ptr("/subscriptions/"+subscription+"/resourceGroups/"+group+"/providers/Microsoft.Devices/IotHubs/"+name)
			h.Properties.HostName, h.Properties.ProvisioningState = to.Ptr(name+".azure-devices.net"), to.Ptr("Succeeded")
			if s.polls < 0 { // for ever
				h.Properties.ProvisioningState = to.Ptr("Creating")
			}
			if s.failure != nil {
				h.Properties.ProvisioningState = to.Ptr("Failed")
			}
			s.hubs[name] = &h
			return long(s, http.StatusCreated, armiothub.ResourceClientCreateOrUpdateResponse{Description: h})
		},
		GetKeysForKeyName: func(_ context.Context, _, name, key string, _ *armiothub.ResourceClientGetKeysForKeyNameOptions) (azfake.Responder[armiothub.ResourceClientGetKeysForKeyNameResponse], azfake.ErrorResponder) {
			if s.hubs[name] == nil || key != "iothubowner" {
				return refuse[armiothub.ResourceClientGetKeysForKeyNameResponse](http.StatusNotFound, "ResourceNotFound")
			}
			return responder(http.StatusOK, armiothub.ResourceClientGetKeysForKeyNameResponse{SharedAccessSignatureAuthorizationRule: armiothub.SharedAccessSignatureAuthorizationRule{KeyName: &key, PrimaryKey: to.Ptr(hubKey)}})
		},
		BeginDelete: func(_ context.Context, _, name string, _ *armiothub.ResourceClientBeginDeleteOptions) (azfake.PollerResponder[armiothub.ResourceClientDeleteResponse], azfake.ErrorResponder) {
			delete(s.hubs, name)
			return long(s, http.StatusAccepted, armiothub.ResourceClientDeleteResponse{})
		},
	}
}

// --- Device Provisioning Services ---------------------------------------------

func (s *resources) serviceServer() dpsfake.IotDpsResourceServer {
	return dpsfake.IotDpsResourceServer{
		CheckProvisioningServiceNameAvailability: func(_ context.Context, in armdps.OperationInputs, _ *armdps.IotDpsResourceClientCheckProvisioningServiceNameAvailabilityOptions) (azfake.Responder[armdps.IotDpsResourceClientCheckProvisioningServiceNameAvailabilityResponse], azfake.ErrorResponder) {
			r := armdps.IotDpsResourceClientCheckProvisioningServiceNameAvailabilityResponse{}
			r.NameAvailable = to.Ptr(!s.taken[*in.Name] && s.services[*in.Name] == nil)
			return responder(http.StatusOK, r)
		},
		Get: func(_ context.Context, name, _ string, _ *armdps.IotDpsResourceClientGetOptions) (azfake.Responder[armdps.IotDpsResourceClientGetResponse], azfake.ErrorResponder) {
			if d := s.services[name]; d != nil {
				return responder(http.StatusOK, armdps.IotDpsResourceClientGetResponse{ProvisioningServiceDescription: d.ProvisioningServiceDescription})
			}
			return refuse[armdps.IotDpsResourceClientGetResponse](http.StatusNotFound, "ResourceNotFound")
		},
		BeginCreateOrUpdate: func(_ context.Context, _, name string, d armdps.ProvisioningServiceDescription, _ *armdps.IotDpsResourceClientBeginCreateOrUpdateOptions) (azfake.PollerResponder[armdps.IotDpsResourceClientCreateOrUpdateResponse], azfake.ErrorResponder) {
			if s.taken[name] {
				return refuseLong[armdps.IotDpsResourceClientCreateOrUpdateResponse](http.StatusConflict, "NameNotAvailable")
			}
			links, err := linksOf(d, s.services[name])
			if err != nil {
				var e azfake.ErrorResponder
				e.SetError(err)
				return azfake.PollerResponder[armdps.IotDpsResourceClientCreateOrUpdateResponse]{}, e
			}
			d.Name, d.Properties.IotHubs = &name, links
			d.Properties.ProvisioningState, d.Properties.State = to.Ptr("Succeeded"), to.Ptr(armdps.StateActive)
			d.Properties.IDScope, d.Properties.ServiceOperationsHostName = to.Ptr("0ne00C0FFEE"), &s.dpsHost
			d.Properties.DeviceProvisioningHostName = to.Ptr("global.azure-devices-provisioning.net")
			if s.services[name] == nil {
				s.services[name] = &service{certificates: map[string]*armdps.CertificateResponse{}, codes: map[string]string{}, groups: map[string]map[string]any{}}
			}
			s.services[name].ProvisioningServiceDescription = d
			return long(s, http.StatusCreated, armdps.IotDpsResourceClientCreateOrUpdateResponse{ProvisioningServiceDescription: d})
		},
		ListKeysForKeyName: func(_ context.Context, name, key, _ string, _ *armdps.IotDpsResourceClientListKeysForKeyNameOptions) (azfake.Responder[armdps.IotDpsResourceClientListKeysForKeyNameResponse], azfake.ErrorResponder) {
			if s.services[name] == nil || key != "provisioningserviceowner" {
				return refuse[armdps.IotDpsResourceClientListKeysForKeyNameResponse](http.StatusNotFound, "ResourceNotFound")
			}
			r := armdps.IotDpsResourceClientListKeysForKeyNameResponse{}
			r.KeyName, r.PrimaryKey = &key, to.Ptr(dpsKey)
			return responder(http.StatusOK, r)
		},
		BeginDelete: func(_ context.Context, name, _ string, _ *armdps.IotDpsResourceClientBeginDeleteOptions) (azfake.PollerResponder[armdps.IotDpsResourceClientDeleteResponse], azfake.ErrorResponder) {
			delete(s.services, name)
			return long(s, http.StatusAccepted, armdps.IotDpsResourceClientDeleteResponse{})
		},
	}
}

var connection = regexp.MustCompile(`^HostName=([^;]+);SharedAccessKeyName=iothubowner;SharedAccessKey=(.+)$`)

// linksOf reads the connection strings of hubs. In answers the keys are masked, and a mask that comes back means the key
// that is known already.
func linksOf(d armdps.ProvisioningServiceDescription, before *service) ([]*armdps.IotHubDefinitionDescription, error) {
	var links []*armdps.IotHubDefinitionDescription
	for _, hub := range d.Properties.IotHubs {
		if hub.ConnectionString == nil || hub.Location == nil {
			return nil, errors.New("a hub without connection string or location")
		}
		m := connection.FindStringSubmatch(*hub.ConnectionString)
		if m == nil || m[2] != hubKey && (m[2] != "****" || before == nil) {
			return nil, errors.New("a hub with another connection string than it has")
		}
		links = append(links, &armdps.IotHubDefinitionDescription{Name: &m[1], Location: hub.Location,
			ConnectionString: to.Ptr("HostName=" + m[1] + ";SharedAccessKeyName=iothubowner;SharedAccessKey=****")})
	}
	return links, nil
}

// --- CA certificates ----------------------------------------------------------

func (s *resources) certificateServer() dpsfake.DpsCertificateServer {
	return dpsfake.DpsCertificateServer{
		List: func(_ context.Context, _, name string, _ *armdps.DpsCertificateClientListOptions) (azfake.Responder[armdps.DpsCertificateClientListResponse], azfake.ErrorResponder) {
			r := armdps.DpsCertificateClientListResponse{}
			for _, c := range s.services[name].certificates {
				r.Value = append(r.Value, c)
			}
			return responder(http.StatusOK, r)
		},
		CreateOrUpdate: func(_ context.Context, _, name, certificate string, c armdps.CertificateResponse, o *armdps.DpsCertificateClientCreateOrUpdateOptions) (azfake.Responder[armdps.DpsCertificateClientCreateOrUpdateResponse], azfake.ErrorResponder) {
			d := s.services[name]
			old := d.certificates[certificate]
			if (old == nil) != (o == nil || o.IfMatch == nil) || old != nil && *o.IfMatch != *old.Etag {
				return refuse[armdps.DpsCertificateClientCreateOrUpdateResponse](http.StatusPreconditionFailed, "PreconditionFailed")
			}
			made, err := newCertificate(certificate, c.Properties.Certificate, *c.Properties.IsVerified && !s.unattested)
			if err != nil {
				return refuse[armdps.DpsCertificateClientCreateOrUpdateResponse](http.StatusBadRequest, "InvalidCertificate")
			}
			d.certificates[certificate] = made
			return responder(http.StatusOK, armdps.DpsCertificateClientCreateOrUpdateResponse{CertificateResponse: *made})
		},
		GenerateVerificationCode: func(_ context.Context, certificate, etag, _, name string, _ *armdps.DpsCertificateClientGenerateVerificationCodeOptions) (azfake.Responder[armdps.DpsCertificateClientGenerateVerificationCodeResponse], azfake.ErrorResponder) {
			d := s.services[name]
			c := d.certificates[certificate]
			if c == nil || *c.Etag != etag {
				return refuse[armdps.DpsCertificateClientGenerateVerificationCodeResponse](http.StatusPreconditionFailed, "PreconditionFailed")
			}
			s.verifications++
			d.codes[certificate] = fmt.Sprintf("CODE%04d", s.verifications)
			*c.Etag += "+"
			r := armdps.DpsCertificateClientGenerateVerificationCodeResponse{}
			r.Etag, r.Properties = c.Etag, &armdps.VerificationCodeResponseProperties{VerificationCode: to.Ptr(d.codes[certificate])}
			return responder(http.StatusOK, r)
		},
		VerifyCertificate: func(_ context.Context, certificate, etag, _, name string, in armdps.VerificationCodeRequest, _ *armdps.DpsCertificateClientVerifyCertificateOptions) (azfake.Responder[armdps.DpsCertificateClientVerifyCertificateResponse], azfake.ErrorResponder) {
			d := s.services[name]
			c := d.certificates[certificate]
			if c == nil || *c.Etag != etag {
				return refuse[armdps.DpsCertificateClientVerifyCertificateResponse](http.StatusPreconditionFailed, "PreconditionFailed")
			}
			if err := proves(c, in, d.codes[certificate]); err != nil {
				return refuse[armdps.DpsCertificateClientVerifyCertificateResponse](http.StatusBadRequest, "CertificateVerificationFailed")
			}
			c.Properties.IsVerified = to.Ptr(true)
			return responder(http.StatusOK, armdps.DpsCertificateClientVerifyCertificateResponse{CertificateResponse: *c})
		},
	}
}

// newCertificate is one as the service describes it.
func newCertificate(name string, der []byte, verified bool) (*armdps.CertificateResponse, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil || !cert.IsCA {
		return nil, errors.New("no CA certificate")
	}
	sum := sha1.Sum(der)
	return &armdps.CertificateResponse{Name: &name, Etag: to.Ptr("E-" + name), Properties: &armdps.CertificateProperties{
		Certificate: der, IsVerified: &verified, Thumbprint: to.Ptr(strings.ToUpper(hex.EncodeToString(sum[:]))),
		Subject: to.Ptr(cert.Subject.CommonName), Expiry: &cert.NotAfter, Created: to.Ptr(time.Now()),
	}}, nil
}

// proves checks a certificate for a code.
func proves(c *armdps.CertificateResponse, in armdps.VerificationCodeRequest, code string) error {
	der, err := base64.StdEncoding.DecodeString(*in.Certificate)
	if err != nil {
		return err
	}
	proof, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	issuer, err := x509.ParseCertificate(c.Properties.Certificate)
	if err != nil {
		return err
	}
	if proof.Subject.CommonName != code || code == "" {
		return errors.New("another code")
	}
	return proof.CheckSignatureFrom(issuer)
}
