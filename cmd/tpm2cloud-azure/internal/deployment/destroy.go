package deployment

import (
	"context"
	"strings"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/arm"
)

// Removal is what is to be deleted.
type Removal struct {
	Group string
	// Whole is true when the resource group goes as well.
	Whole bool
	// Resources are ours; Kept are the others in the group, and why the group stays.
	Resources, Kept []arm.Resource
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
	return r, nil
}

// Remove deletes it. A run that is cut is continued by another.
func (d *Deployment) Remove(ctx context.Context, r *Removal) error {
	if r.Whole {
		return d.ARM.DeleteGroup(ctx, r.Group)
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
