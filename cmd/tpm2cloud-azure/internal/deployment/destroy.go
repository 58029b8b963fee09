package deployment

import (
	"context"
	"slices"
	"strings"

	armdps "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/deviceprovisioningservices/armdeviceprovisioningservices"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/arm"
	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/dps"
)

// Removal is what is to be deleted.
type Removal struct {
	Group string
	// Whole is true when the resource group goes as well.
	Whole bool
	// Resources are ours; Kept are the others in the group, and why the group stays.
	Resources, Kept []arm.Resource
	// Links are those of services that stay to hubs that go.
	Links []Link
	// Enrolments are groups in services that stay because they were not made here.
	Enrolments []Enrolment
}

// Link is that of a service to a hub, by their names.
type Link struct{ Service, Hub string }

// Enrolment is a group in a service, and its CAs.
type Enrolment struct {
	Service, Group string
	CAs            []string
}

// The types that this program makes, in the order in which they are deleted: a service first, so that no device is
// assigned to a hub that is about to go.
const (
	typeService = "Microsoft.Devices/provisioningServices"
	typeHub     = "Microsoft.Devices/IotHubs"
)

// Only names what is to be deleted, where that is not all of it: without any name it is.
type Only struct{ Hub, Service string }

func (o Only) has(r arm.Resource) bool {
	switch {
	case o == Only{}:
		return isHub(r) || isService(r)
	case isHub(r):
		return strings.EqualFold(r.Name, o.Hub)
	}
	return isService(r) && strings.EqualFold(r.Name, o.Service)
}

func isHub(r arm.Resource) bool     { return strings.EqualFold(r.Type, typeHub) }
func isService(r arm.Resource) bool { return strings.EqualFold(r.Type, typeService) }

// PlanRemoval finds out what was made here. Only what has our tag is deleted, and the resource group only if it has the
// tag too, there is nothing else in it, and nobody has asked for less. It is nil when there is no such resource group.
func (d *Deployment) PlanRemoval(ctx context.Context, only Only) (*Removal, error) {
	group, err := d.ARM.Group(ctx, d.Group)
	if err != nil || group == nil {
		return nil, err
	}
	if group.Properties != nil {
		if err := d.unfinished("the resource group "+d.Group, value(group.Properties.ProvisioningState)); err != nil {
			return nil, err
		}
	}
	all, err := d.ARM.Resources(ctx, d.Group)
	if err != nil {
		return nil, err
	}
	r := &Removal{Group: d.Group}
	for _, is := range []func(arm.Resource) bool{isService, isHub} {
		for _, resource := range all {
			if is(resource) && resource.Ours && only.has(resource) {
				r.Resources = append(r.Resources, resource)
			}
		}
	}
	for _, resource := range all {
		if !resource.Ours || !only.has(resource) {
			r.Kept = append(r.Kept, resource)
		}
	}
	r.Whole = arm.Ours(group.Tags) && len(r.Kept) == 0 && only == Only{}
	for _, resource := range r.Kept {
		if isService(resource) {
			if err := d.planService(ctx, r, resource); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

// planService finds what this program has done to a service that stays. Its keys are read only where it was used here, as
// far as that can be seen.
func (d *Deployment) planService(ctx context.Context, r *Removal, resource arm.Resource) error {
	service, err := d.ARM.Service(ctx, r.Group, resource.Name)
	if err != nil || service == nil || service.Properties == nil {
		return err
	}
	used := strings.EqualFold(resource.Name, d.Service)
	for _, hub := range r.linked(service) {
		r.Links = append(r.Links, Link{resource.Name, hub})
		used = true
	}
	host := value(service.Properties.ServiceOperationsHostName)
	if resource.Ours || !used || host == "" {
		return nil
	}
	group, err := d.enrolmentOf(ctx, resource.Name, host)
	if err != nil {
		d.Warn("what is left in the Device Provisioning Service %s is not known: %v", resource.Name, err)
		return nil
	}
	if group == nil {
		return nil
	}
	e := Enrolment{Service: resource.Name, Group: d.EnrolmentGroup}
	primary, secondary := references(group)
	for _, name := range []string{primary, secondary} {
		if name != "" {
			e.CAs = append(e.CAs, name)
		}
	}
	r.Enrolments = append(r.Enrolments, e)
	return nil
}

func (d *Deployment) enrolmentOf(ctx context.Context, service, host string) (*dps.Group, error) {
	data, err := d.Data(ctx, service, host)
	if err != nil {
		return nil, err
	}
	return data.Group(ctx, d.EnrolmentGroup)
}

// linked are the hubs to be deleted that a service has a link to.
func (r *Removal) linked(service *armdps.ProvisioningServiceDescription) (hubs []string) {
	for _, resource := range r.Resources {
		to := func(link *armdps.IotHubDefinitionDescription) bool { return arm.LinksTo(link, resource.Name) }
		if isHub(resource) && slices.ContainsFunc(service.Properties.IotHubs, to) {
			hubs = append(hubs, resource.Name)
		}
	}
	return hubs
}

// Remove deletes it. A run that is cut is continued by another.
func (d *Deployment) Remove(ctx context.Context, r *Removal) error {
	if r.Whole {
		return d.ARM.DeleteGroup(ctx, r.Group)
	}
	// A service would go on assigning devices to a hub that is gone.
	for _, resource := range r.Kept {
		if err := d.unlink(ctx, r, resource.Name); err != nil {
			return err
		}
	}
	for _, resource := range r.Resources {
		remove := d.ARM.DeleteHub
		if isService(resource) {
			remove = d.ARM.DeleteService
		}
		if err := remove(ctx, r.Group, resource.Name); err != nil {
			return err
		}
	}
	return nil
}

// unlink takes the hubs that go from a service that stays, which is read once more: time has passed since the plan, and to
// write one that is gone would make it.
func (d *Deployment) unlink(ctx context.Context, r *Removal, name string) error {
	if !slices.ContainsFunc(r.Links, func(l Link) bool { return l.Service == name }) {
		return nil
	}
	service, err := d.ARM.Service(ctx, r.Group, name)
	if err != nil || service == nil || service.Properties == nil {
		return err
	}
	if hubs := r.linked(service); len(hubs) > 0 {
		return d.ARM.UnlinkHubs(ctx, r.Group, service, hubs...)
	}
	return nil
}
