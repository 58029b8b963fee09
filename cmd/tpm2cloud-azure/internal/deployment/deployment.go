// Package deployment brings the cloud side of a fleet to what it must be, and says how it stands.
//
//	operational-ca   the CA that issues operational certificates, from EST or a file; a CA, and valid today
//	resource-group   where the rest is
//	iot-hub          where devices connect to
//	dps              the Device Provisioning Service, with the hub linked to it
//	ca-certificate   that CA in the service, verified
//	enrolment-group  whoever has a certificate of that CA is an IoT Edge device of the hub
//	drop-in          a file with what the devices need to know
//
// They are steps of pkg/step: each looks, makes one move, and looks again, so that a deployment that was cut goes on, and
// one that is there is not changed. What was not made by this program (it has no tag managed-by=tpm2cloud) is used where it
// has the right name, and is never deleted.
package deployment

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	armdps "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/deviceprovisioningservices/armdeviceprovisioningservices"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/iothub/armiothub"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/arm"
	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/dps"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Wanted is what should be there.
type Wanted struct {
	Group, Location string
	Hub, Service    string
	SKU             string // of the hub
	Units           int64
	// EnrolmentGroup is its id.
	EnrolmentGroup string
	// Certificate is the name that the first CA has in the service.
	Certificate string

	// The operational CA: a file, or else an EST server and the file with the CA of its TLS certificate.
	CA                   string
	EST, Label, ServerCA string
	// CAKey proves the possession of the CA; nil where it is elsewhere.
	CAKey crypto.Signer
	// ReplaceCA lets a group have this CA that had another; the old one stays valid unless DropOldCA.
	ReplaceCA, DropOldCA bool

	// DropIn is a path.
	DropIn string
}

// Names are those of a hub and a service that were not given any. They are the same at each run, and no other resource
// group's.
func Names(subscription, group string) (hub, service string) {
	sum := sha256.Sum256([]byte(strings.ToLower("/subscriptions/" + subscription + "/resourceGroups/" + group)))
	unique := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:8]))
	return unique + "-iothub", unique + "-dps"
}

// Deployment is the cloud side of a fleet.
type Deployment struct {
	Wanted
	ARM *arm.Client
	// Data opens the data plane of a service, which is at a host.
	Data func(ctx context.Context, service, host string) (*dps.Client, error)
	// Warn is told what was done that is worse than it could be.
	Warn func(format string, args ...any)

	// What the steps have seen in this run, for those that come after them.
	ca          *x509.Certificate
	hub         *armiothub.Description
	service     *armdps.ProvisioningServiceDescription
	certificate *armdps.CertificateResponse
	data        *dps.Client
	group       *dps.Group
}

// Steps are those of a deployment, in their order.
func (d *Deployment) Steps() []step.Step {
	return []step.Step{&operationalCA{d}, &resourceGroup{d}, &iotHub{d}, &provisioning{d}, &caCertificate{d}, &enrolmentGroup{d}, &dropIn{d}}
}

// Status are the steps that can be judged without the CA.
func (d *Deployment) Status() []step.Step {
	return []step.Step{&resourceGroup{d}, &iotHub{d}, &provisioning{d}, &enrolmentGroup{d}, &caCertificate{d}}
}

// IDScope is what devices name the service by; "" as long as there is none.
func (d *Deployment) IDScope() string {
	if d.service == nil {
		return ""
	}
	return value(d.service.Properties.IDScope)
}

// Registrations are the devices that registered with the group, if the steps have seen one; nil if not.
func (d *Deployment) Registrations(ctx context.Context) ([]dps.Registration, error) {
	if d.group == nil {
		return nil, nil
	}
	data, err := d.dataPlane(ctx)
	if err != nil {
		return nil, err
	}
	return data.Registrations(ctx, d.EnrolmentGroup)
}

// dataPlane opens the data plane once in a run.
func (d *Deployment) dataPlane(ctx context.Context) (*dps.Client, error) {
	if d.data == nil {
		data, err := d.Data(ctx, d.Service, value(d.service.Properties.ServiceOperationsHostName))
		if err != nil {
			return nil, err
		}
		d.data = data
	}
	return d.data, nil
}

// unfinished is the error of something that Azure is still at work on, whoever has begun it; nil if it is not.
func (d *Deployment) unfinished(what, state string) error {
	switch strings.ToLower(state) {
	case "", "succeeded", "active", "failed", "activationfailed":
		return nil
	case "suspended", "deletionfailed", "failoverfailed":
		return step.As(step.Refused, "look at it in the portal", fmt.Errorf("cannot use %s: it is %s", what, state))
	}
	return &step.Error{Class: step.Temporary, NotBefore: time.Now().Add(d.ARM.Poll), Hint: "Azure goes on by itself; a later run goes on from there",
		Err: fmt.Errorf("cannot use %s yet: it is %s", what, state)}
}

// failedState tells whether Azure could not make the thing; to make it once more repairs it.
func failedState(state string) bool {
	return strings.EqualFold(state, "failed") || strings.EqualFold(state, "activationfailed")
}

// elsewhere tells whether two locations differ; Azure writes them as "West Europe" and "westeurope".
func elsewhere(is *string, wanted string) bool {
	plain := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, " ", "")) }
	return wanted != "" && plain(value(is)) != plain(wanted)
}

// describe is a certificate as pkg/step shows it.
func describe(c *x509.Certificate) *step.Certificate {
	sum := sha256.Sum256(c.Raw)
	return &step.Certificate{CommonName: c.Subject.CommonName, SerialNumber: c.Subject.SerialNumber, Issuer: c.Issuer.CommonName,
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, SHA256: hex.EncodeToString(sum[:])}
}

func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
