package deployment

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	armdps "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/deviceprovisioningservices/armdeviceprovisioningservices"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/ca"
	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/dps"
	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/dropin"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// --- CA certificate -----------------------------------------------------------

// caCertificate is the operational CA in the service. It is known by its thumbprint, whatever its name there, so that one
// that somebody has uploaded already is used.
type caCertificate struct{ *Deployment }

func (s *caCertificate) Name() string { return "ca-certificate" }

func (s *caCertificate) Observe(ctx context.Context) (step.Observation, error) {
	if s.service == nil {
		return step.WaitsFor(s.Certificate, "dps"), nil
	}
	if s.ca == nil && s.group == nil { // a status
		return step.WaitsFor(s.Certificate, "enrolment-group"), nil
	}
	all, err := s.ARM.Certificates(ctx, s.Group, s.Service)
	if err != nil {
		return step.Observation{Object: s.Certificate}, err
	}
	if s.certificate = s.find(all); s.certificate == nil {
		return s.absent(ctx, s.freeName(all))
	}
	o := step.Observation{Object: value(s.certificate.Name)}
	p := s.certificate.Properties
	if !value(p.IsVerified) {
		o.State, o.Detail = step.Partial, fmt.Sprintf("%s is not verified, and no device of it is let in", value(p.Subject))
		return o, nil
	}
	o.State, o.Detail = step.Present, fmt.Sprintf("%s, verified, until %s", value(p.Subject), value(p.Expiry).UTC().Format(time.DateOnly))
	if expiry := value(p.Expiry); !expiry.IsZero() && time.Now().After(expiry) {
		o.Warnings = append(o.Warnings, "it has expired, and no device of it is let in")
	}
	return o, nil
}

// absent is a CA that is to be uploaded, unless the group belongs to another one: that is found out before.
func (s *caCertificate) absent(ctx context.Context, name string) (step.Observation, error) {
	o := step.Observation{Object: name, Detail: "to be uploaded and verified"}
	if s.ca == nil {
		return o, nil
	}
	o.Detail = ca.Name(s.ca) + ", " + o.Detail
	group, err := s.readGroup(ctx)
	if err != nil || group == nil {
		return o, err
	}
	if conflict := s.conflict(group); conflict != nil {
		return *conflict, nil
	}
	return o, nil
}

// find looks for the CA. Where it is not known, which is so in a status, it is the one that the group names, which was read
// before.
func (s *caCertificate) find(all []*armdps.CertificateResponse) *armdps.CertificateResponse {
	for _, c := range all {
		if c == nil || c.Properties == nil {
			continue
		}
		if s.ca != nil && strings.EqualFold(value(c.Properties.Thumbprint), ca.Thumbprint(s.ca)) {
			return c
		}
		if s.ca == nil {
			if primary, _ := references(s.group); value(c.Name) == primary {
				return c
			}
		}
	}
	return nil
}

// freeName is the name that the CA gets: the configured one, or, where another CA has that, one with its thumbprint.
func (s *caCertificate) freeName(all []*armdps.CertificateResponse) string {
	taken := slices.ContainsFunc(all, func(c *armdps.CertificateResponse) bool { return strings.EqualFold(value(c.Name), s.Certificate) })
	if !taken || s.ca == nil {
		return s.Certificate
	}
	return s.Certificate + "-" + strings.ToLower(ca.Thumbprint(s.ca)[:8])
}

func (s *caCertificate) Act(ctx context.Context, o step.Observation) error {
	var etag *string
	if s.certificate != nil {
		etag = s.certificate.Etag
	}
	if s.CAKey == nil {
		uploaded, err := s.ARM.PutCertificate(ctx, s.Group, s.Service, o.Object, s.ca.Raw, true, etag)
		if err != nil {
			return err
		}
		if uploaded.Properties == nil || !value(uploaded.Properties.IsVerified) {
			return step.As(step.ServerRefused, "give the CA's key with --ca-key, or verify the certificate in the portal",
				fmt.Errorf("cannot verify the CA certificate %s: Azure wants a proof of possession", o.Object))
		}
		s.Warn("%s: the proof of possession was skipped: Azure takes your word that %s is yours; with --ca-key it is proven", o.Object, ca.Name(s.ca))
		return nil
	}
	if s.certificate == nil {
		uploaded, err := s.ARM.PutCertificate(ctx, s.Group, s.Service, o.Object, s.ca.Raw, false, nil)
		if err != nil {
			return err
		}
		etag = uploaded.Etag
	}
	return s.ARM.Prove(ctx, s.Group, s.Service, o.Object, value(etag), func(code string) ([]byte, error) {
		return ca.Proof(s.ca, s.CAKey, code, time.Now())
	})
}

// --- enrolment group ----------------------------------------------------------

type enrolmentGroup struct{ *Deployment }

func (s *enrolmentGroup) Name() string { return "enrolment-group" }

// A device that registers again is assigned anew, and what its old hub knew of it goes along.
var reprovision = dps.ReprovisionPolicy{UpdateHubAssignment: true, MigrateDeviceData: true}

func (s *enrolmentGroup) Observe(ctx context.Context) (step.Observation, error) {
	o := step.Observation{Object: s.EnrolmentGroup}
	if s.service == nil {
		return step.WaitsFor(o.Object, "dps"), nil
	}
	var err error
	if s.group, err = s.readGroup(ctx); err != nil {
		return o, err
	}
	group := s.group
	if group == nil {
		o.Detail = "to be made, for IoT Edge devices"
		return o, nil
	}
	primary, secondary := references(group)
	if conflict := s.conflict(group); conflict != nil {
		return *conflict, nil
	}
	if group.ProvisioningStatus == "disabled" {
		o.Warnings = append(o.Warnings, `it is disabled, so that no device can register; "az iot dps enrollment-group update --provisioning-status enabled" ends that`)
	}
	if wrong := s.differences(group); len(wrong) > 0 {
		o.State, o.Detail = step.Partial, strings.Join(wrong, "; ")
		return o, nil
	}
	o.State, o.Detail = step.Present, "IoT Edge, CA "+primary
	if secondary != "" {
		o.Detail += ", and still " + secondary
	}
	return o, nil
}

func (d *Deployment) readGroup(ctx context.Context) (*dps.Group, error) {
	data, err := d.dataPlane(ctx)
	if err != nil {
		return nil, err
	}
	return data.Group(ctx, d.EnrolmentGroup)
}

// references are the names of the group's CA certificates.
func references(g *dps.Group) (primary, secondary string) {
	if g.Attestation.X509 == nil || g.Attestation.X509.References == nil {
		return "", ""
	}
	r := g.Attestation.X509.References
	return r.Primary, r.Secondary
}

// conflict is somebody else's group: to take it over would lock out its devices.
func (d *Deployment) conflict(group *dps.Group) *step.Observation {
	o := &step.Observation{State: step.Conflict, Object: "the enrolment group " + d.EnrolmentGroup, Hint: "give another name with --enrolment-group"}
	primary, _ := references(group)
	switch {
	case group.Attestation.Type != "x509":
		o.Detail = fmt.Sprintf("its devices prove themselves by %s, not by certificates", group.Attestation.Type)
		return o
	case primary == "":
		o.Detail = "it has certificates of its own, and no CA of the service"
		return o
	case d.otherCA(primary) && !d.ReplaceCA:
		o.Detail = fmt.Sprintf("its devices have certificates of another CA, %s", primary)
		o.Hint = "--replace-ca gives it the new CA, and keeps the old one beside it; or give another name with --enrolment-group"
		return o
	}
	return nil
}

// otherCA tells whether the CA with a name in the service is not the operational one. In a status any is right.
func (d *Deployment) otherCA(name string) bool {
	return d.ca != nil && (d.certificate == nil || value(d.certificate.Name) != name)
}

// differences are what must be changed.
func (s *enrolmentGroup) differences(group *dps.Group) (wrong []string) {
	primary, secondary := references(group)
	if s.otherCA(primary) {
		wrong = append(wrong, "its CA is "+primary)
	}
	if s.DropOldCA && secondary != "" {
		wrong = append(wrong, "it still takes the old CA "+secondary)
	}
	if group.Capabilities == nil || !group.Capabilities.IoTEdge {
		wrong = append(wrong, "its devices are not IoT Edge devices")
	}
	if group.ReprovisionPolicy == nil || *group.ReprovisionPolicy != reprovision {
		wrong = append(wrong, "its re-provisioning policy is another one")
	}
	return wrong
}

func (s *enrolmentGroup) Act(ctx context.Context, _ step.Observation) error {
	data, err := s.dataPlane(ctx)
	if err != nil {
		return err
	}
	group := s.group // with its etag, so that what somebody else has changed since is not lost
	if group == nil {
		group = &dps.Group{ID: s.EnrolmentGroup, ProvisioningStatus: "enabled", AllocationPolicy: "hashed", Attestation: dps.Attestation{Type: "x509"}}
	}
	name := value(s.certificate.Name)
	primary, secondary := references(group)
	if primary != name {
		primary, secondary = name, primary
	}
	if s.DropOldCA {
		secondary = ""
	}
	group.Attestation.X509 = &dps.X509{References: &dps.References{Primary: primary, Secondary: secondary}}
	group.Capabilities = &dps.Capabilities{IoTEdge: true}
	group.ReprovisionPolicy = &reprovision
	return data.Put(ctx, group)
}

// --- drop-in ------------------------------------------------------------------

type dropIn struct{ *Deployment }

func (s *dropIn) Name() string { return "drop-in" }

func (s *dropIn) edge() dropin.Edge {
	p := s.service.Properties
	return dropin.Edge{IDScope: value(p.IDScope), Endpoint: value(p.DeviceProvisioningHostName), Server: s.EST, Label: s.Label, ServerCA: s.ServerCA}
}

func (s *dropIn) Observe(context.Context) (step.Observation, error) {
	if s.service == nil {
		return step.WaitsFor(s.DropIn, "dps"), nil
	}
	o := step.Observation{Object: s.DropIn, Detail: "to be written"}
	same, err := dropin.Same(s.DropIn, s.edge().Text())
	switch {
	case errors.Is(err, dropin.ErrForeign):
		o.State, o.Detail, o.Hint = step.Conflict, err.Error(), "remove it, or name another file with --drop-in"
	case err != nil:
		return o, unusable(err)
	case same:
		o.State, o.Detail = step.Present, "ID scope "+s.IDScope()
	}
	return o, nil
}

func (s *dropIn) Act(context.Context, step.Observation) error {
	if err := dropin.Write(s.DropIn, s.edge().Text()); err != nil {
		return unusable(err)
	}
	if s.ServerCA != "" {
		s.Warn("%s: the devices look for a copy of %s at %s", s.DropIn, s.ServerCA, s.edge().DeviceCA())
	}
	return nil
}

// unusable is an error of the drop-in's file.
func unusable(err error) error {
	class := step.Configuration
	if errors.Is(err, fs.ErrPermission) {
		class = step.Permission
	}
	return step.As(class, "name another file with --drop-in", err)
}
