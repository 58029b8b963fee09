package deployment

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	armdps "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/deviceprovisioningservices/armdeviceprovisioningservices"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/arm"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// toBeMade is the detail of what is not there. A status knows no location.
func (d *Deployment) toBeMade() string {
	if d.Location == "" {
		return "to be made"
	}
	return "to be made in " + d.Location
}

// foreign ends the detail of what is used as it is.
const foreign = ", not made by tpm2cloud"

// --- resource group -----------------------------------------------------------

type resourceGroup struct{ *Deployment }

func (s *resourceGroup) Name() string { return "resource-group" }

func (s *resourceGroup) Observe(ctx context.Context) (step.Observation, error) {
	o := step.Observation{Object: s.Group, Detail: s.toBeMade()}
	group, err := s.ARM.Group(ctx, s.Group)
	if err != nil || group == nil {
		return o, err
	}
	if group.Properties != nil {
		if err := s.unfinished("the resource group "+s.Group, value(group.Properties.ProvisioningState)); err != nil {
			return o, err
		}
	}
	o.State, o.Detail = step.Present, "in "+value(group.Location)
	if !arm.Ours(group.Tags) {
		o.Detail += foreign
	}
	return o, nil
}

func (s *resourceGroup) Act(ctx context.Context, _ step.Observation) error {
	return s.ARM.CreateGroup(ctx, s.Group, s.Location)
}

// --- IoT Hub ------------------------------------------------------------------

type iotHub struct{ *Deployment }

func (s *iotHub) Name() string { return "iot-hub" }

func (s *iotHub) Observe(ctx context.Context) (step.Observation, error) {
	wantedSKU, wantedUnits := s.size()
	o := step.Observation{Object: s.Hub, Detail: fmt.Sprintf("%s: %s x %d", s.toBeMade(), wantedSKU, wantedUnits)}
	var err error
	if s.hub, err = s.ARM.Hub(ctx, s.Group, s.Hub); err != nil || s.hub == nil {
		return o, err
	}
	if s.hub.Properties == nil || s.hub.SKU == nil {
		return o, step.Fail(step.ServerRefused, "cannot use the IoT Hub %s: Azure describes it without properties", s.Hub)
	}
	state := value(s.hub.Properties.ProvisioningState)
	if err := s.unfinished("the IoT Hub "+s.Hub, state); err != nil {
		return o, err
	}
	if failedState(state) {
		o.State, o.Detail = step.Partial, "Azure could not make it; to be made once more"
		return o, nil
	}
	if value(s.hub.Properties.HostName) == "" {
		return o, step.Fail(step.ServerRefused, "cannot use the IoT Hub %s: Azure does not say where it is", s.Hub)
	}
	sku, units := string(value(s.hub.SKU.Name)), value(s.hub.SKU.Capacity)
	o.State, o.Detail = step.Present, fmt.Sprintf("%s, %s x %d in %s", value(s.hub.Properties.HostName), sku, units, value(s.hub.Location))
	if !arm.Ours(s.hub.Tags) {
		o.Detail += foreign
	}
	// A hub is neither moved nor resized here: the one loses its devices, and the other costs money.
	if elsewhere(s.hub.Location, s.Location) {
		o.Warnings = append(o.Warnings, fmt.Sprintf("it is in %s, and stays there", value(s.hub.Location)))
	}
	if s.SKU != "" && sku != s.SKU || s.Units != 0 && units != s.Units {
		o.Warnings = append(o.Warnings, fmt.Sprintf(`it is %s x %d, and stays so; "az iot hub update" can make it %s x %d`, sku, units, wantedSKU, wantedUnits))
	}
	return o, nil
}

// Act makes the hub, or has Azure try once more. Its link in the service may be to one that was there before, and Azure shows
// no keys by which that could be seen later: it goes first, so that a run that is cut afterwards finds none.
func (s *iotHub) Act(ctx context.Context, o step.Observation) error {
	if o.State == step.Partial {
		if err := s.unlink(ctx, true); err != nil {
			return err
		}
		return s.ARM.RepairHub(ctx, s.Group, s.hub)
	}
	free, err := s.ARM.HubNameFree(ctx, s.Hub)
	if err != nil {
		return err
	}
	if err := s.unlink(ctx, free); err != nil {
		return err
	}
	sku, units := s.size()
	return s.ARM.CreateHub(ctx, s.Group, s.Hub, s.Location, sku, units)
}

// unlink takes the link to the hub from the service, if it is known not to be one to a hub in another resource group.
func (s *iotHub) unlink(ctx context.Context, known bool) error {
	service, err := s.ARM.Service(ctx, s.Group, s.Service)
	if err != nil || service == nil || service.Properties == nil {
		return err
	}
	i := slices.IndexFunc(service.Properties.IotHubs, func(link *armdps.IotHubDefinitionDescription) bool { return arm.LinksTo(link, s.Hub) })
	switch {
	case i < 0:
		return nil
	case !known:
		return step.As(step.Permission, fmt.Sprintf(`if that hub is gone: "az iot dps linked-hub delete --resource-group %s --dps-name %s --linked-hub %s"; if not, choose another name with --hub`,
			s.Group, s.Service, value(service.Properties.IotHubs[i].Name)),
			fmt.Errorf("cannot create the IoT Hub %s: %s is linked to one of that name, and this account may not ask whether it is still there", s.Hub, s.Service))
	}
	return s.ARM.UnlinkHubs(ctx, s.Group, service, s.Hub)
}

// size is that of a hub that is made, where nobody has asked for another.
func (s *iotHub) size() (sku string, units int64) { return cmp.Or(s.SKU, "S1"), cmp.Or(s.Units, 1) }

// --- Device Provisioning Service ----------------------------------------------

type provisioning struct{ *Deployment }

func (s *provisioning) Name() string { return "dps" }

func (s *provisioning) Observe(ctx context.Context) (step.Observation, error) {
	o := step.Observation{Object: s.Service, Detail: s.toBeMade() + ", with the hub"}
	s.data = nil
	var err error
	if s.service, err = s.ARM.Service(ctx, s.Group, s.Service); err != nil || s.service == nil {
		return o, err
	}
	p := s.service.Properties
	if p == nil {
		return o, step.Fail(step.ServerRefused, "cannot use the Device Provisioning Service %s: Azure describes it without properties", s.Service)
	}
	for _, state := range []string{value(p.ProvisioningState), string(value(p.State))} {
		if err := s.unfinished("the Device Provisioning Service "+s.Service, state); err != nil {
			return o, err
		}
		if failedState(state) {
			o.State, o.Detail = step.Partial, "Azure could not make it; to be made once more"
			return o, nil
		}
	}
	for what, name := range map[string]*string{"which ID scope it has": p.IDScope, "where devices register": p.DeviceProvisioningHostName, "where its data plane is": p.ServiceOperationsHostName} {
		if value(name) == "" {
			return o, step.Fail(step.ServerRefused, "cannot use the Device Provisioning Service %s: Azure does not say %s", s.Service, what)
		}
	}
	if s.hub == nil || !s.linked() {
		o.State, o.Detail = step.Partial, "the IoT Hub "+s.Hub+" is to be linked to it"
		return o, nil
	}
	o.State, o.Detail = step.Present, fmt.Sprintf("ID scope %s, linked to %s", value(p.IDScope), value(s.hub.Properties.HostName))
	if !arm.Ours(s.service.Tags) {
		o.Detail += foreign
	}
	if len(p.IotHubs) > 1 {
		o.Warnings = append(o.Warnings, fmt.Sprintf("%d IoT Hubs are linked to it, and it spreads the devices over all of them", len(p.IotHubs)))
	}
	return o, nil
}

func (s *provisioning) linked() bool {
	for _, link := range s.service.Properties.IotHubs {
		if strings.EqualFold(value(link.Name), value(s.hub.Properties.HostName)) {
			return true
		}
	}
	return false
}

func (s *provisioning) Act(ctx context.Context, o step.Observation) error {
	connection, err := s.ARM.HubConnection(ctx, s.Group, s.hub)
	if err != nil {
		return err
	}
	link := &armdps.IotHubDefinitionDescription{ConnectionString: &connection, Location: s.hub.Location}
	if o.State == step.Missing {
		return s.ARM.CreateService(ctx, s.Group, s.Service, s.Location, link)
	}
	return s.ARM.UpdateService(ctx, s.Group, s.service, value(s.hub.Properties.HostName), link)
}
