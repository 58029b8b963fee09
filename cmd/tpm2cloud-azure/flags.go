package main

import (
	"cmp"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/ca"
	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/clouds"
	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/deployment"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// options are the flags of all verbs.
type options struct {
	deployment.Wanted
	subscription, cloud, auth string
	caKey                     string
	only                      deployment.Only // what --hub and --dps have named
	json, dryRun, yes         bool
	poll, timeout             time.Duration
}

// verb is one of the things that the program does.
type verb struct {
	name, summary string
	flags         func(*flag.FlagSet, *options)
	check         func(*options) error
}

var verbs = []verb{
	{"deploy", "make the cloud side of a fleet, or what is missing of it", deployFlags, checkDeploy},
	{"status", "show how it stands, and the devices that registered; change nothing", statusFlags, nil},
	{"destroy", "delete what deploy has made", destroyFlags, nil},
}

func commonFlags(f *flag.FlagSet, o *options) {
	f.StringVar(&o.Group, "resource-group", "", "`NAME` of the resource group (required)")
	f.StringVar(&o.subscription, "subscription", os.Getenv("AZURE_SUBSCRIPTION_ID"), "`ID` of the subscription; AZURE_SUBSCRIPTION_ID, or the only one that the account sees")
	f.StringVar(&o.cloud, "cloud", "public", "`NAME` ("+clouds.Names()+"), or a file with the output of \"az cloud show\"")
	f.StringVar(&o.Hub, "hub", "", "`NAME` of the IoT Hub; made of subscription and resource group")
	f.StringVar(&o.Service, "dps", "", "`NAME` of the Device Provisioning Service; likewise")
	f.StringVar(&o.EnrolmentGroup, "enrolment-group", "iotedge-tpm2cloud", "`ID` of the enrolment group")
	f.StringVar(&o.Certificate, "certificate-name", "est-cacerts", "`NAME` of the CA certificate in the service")
	f.StringVar(&o.auth, "auth", "key", "`HOW` the service's data plane knows us: key (its own), or login (Microsoft Entra)")
	f.DurationVar(&o.timeout, "timeout", 30*time.Minute, "`TIME` for the whole run")
	f.DurationVar(&o.poll, "poll", 10*time.Second, "`TIME` between two looks at what takes longer")
}

func deployFlags(f *flag.FlagSet, o *options) {
	f.StringVar(&o.Location, "location", "", "`REGION` of what is made, like westeurope (required)")
	f.StringVar(&o.EST, "est", "", "`HOST:PORT` of the EST server that issues operational certificates")
	f.StringVar(&o.Label, "est-label", "", "`LABEL` of the CA at the EST server")
	f.StringVar(&o.ServerCA, "est-ca", "", "`FILE` with the CA of the EST server's TLS certificate; else the system's store")
	f.StringVar(&o.CA, "ca", "", "`FILE` with the operational CA; else the EST server is asked")
	f.StringVar(&o.caKey, "ca-key", "", "`FILE` with the operational CA's key, to prove its possession")
	f.StringVar(&o.SKU, "sku", "", "`SKU` of an IoT Hub that is made: F1 (free), S1, S2, S3 (S1)")
	f.Int64Var(&o.Units, "units", 0, "`NUMBER` of units of an IoT Hub that is made (1)")
	f.BoolVar(&o.ReplaceCA, "replace-ca", false, "give the enrolment group this CA where it has another, which stays beside it")
	f.BoolVar(&o.DropOldCA, "drop-old-ca", false, "let no device of the CA before in any more")
	// Its name comes after those of the examples and of provision-tpm2cloud (50, 60): the last file that sets a key counts.
	f.StringVar(&o.DropIn, "drop-in", "70-azure.toml", "`FILE` to write for /etc/tpm2cloud/tpm2cloud.toml.d of the devices")
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&o.json, "json", false, "write JSON: an object for each step, and one at the end")
}

func statusFlags(f *flag.FlagSet, o *options) {
	f.BoolVar(&o.json, "json", false, "write JSON")
}

func destroyFlags(f *flag.FlagSet, o *options) {
	f.BoolVar(&o.yes, "yes", false, "do not ask")
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would be deleted, and delete nothing")
}

// parse reads the command line; the flags of a verb stand behind it.
func parse(args []string, help io.Writer) (verb, *options, error) {
	usage := func(err error) error { return step.As(step.Usage, "tpm2cloud-azure --help shows what there is", err) }
	if len(args) == 0 {
		return verb{}, nil, usage(fmt.Errorf("no verb given: deploy, status or destroy"))
	}
	if slices.Contains([]string{"-h", "-help", "--help", "help"}, args[0]) {
		writeUsage(help)
		return verb{}, nil, flag.ErrHelp
	}
	i := slices.IndexFunc(verbs, func(v verb) bool { return v.name == args[0] })
	if i < 0 {
		return verb{}, nil, usage(fmt.Errorf("there is no verb %q", args[0]))
	}
	v, o := verbs[i], &options{}
	f := v.flagSet(o)
	switch err := f.Parse(args[1:]); {
	case err == flag.ErrHelp:
		writeUsage(help)
		return v, nil, err
	case err != nil:
		return v, nil, usage(err)
	case f.NArg() > 0:
		return v, nil, usage(fmt.Errorf("%s takes no argument %q", v.name, f.Arg(0)))
	}
	if err := o.check(); err != nil {
		return v, nil, usage(err)
	}
	if v.check != nil {
		if err := v.check(o); err != nil {
			return v, nil, usage(err)
		}
	}
	return v, o, nil
}

func (v verb) flagSet(o *options) *flag.FlagSet {
	f := flag.NewFlagSet(v.name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	commonFlags(f, o)
	if v.flags != nil {
		v.flags(f, o)
	}
	return f
}

// What Azure takes as names. Whatever else stands there would be found out late, or be part of a path.
var names = map[string]*regexp.Regexp{
	"resource-group":   regexp.MustCompile(`^[\pL\pN_.()-]{0,89}[\pL\pN_()-]$`),
	"subscription":     regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`),
	"hub":              regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{1,48}[A-Za-z0-9]$`),
	"dps":              regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{1,62}[A-Za-z0-9]$`),
	"enrolment-group":  regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._:-]{0,126}[A-Za-z0-9])?$`),
	"certificate-name": regexp.MustCompile(`^[A-Za-z0-9._-]{1,55}$`), // a thumbprint may follow it
	"location":         regexp.MustCompile(`^[A-Za-z0-9 ]+$`),
}

func (o *options) check() error {
	if o.Group == "" {
		return fmt.Errorf("--resource-group is missing")
	}
	for _, c := range []struct{ flag, value string }{
		{"resource-group", o.Group}, {"subscription", o.subscription}, {"hub", o.Hub}, {"dps", o.Service},
		{"enrolment-group", o.EnrolmentGroup}, {"certificate-name", o.Certificate}, {"location", o.Location},
	} {
		if c.value != "" && !names[c.flag].MatchString(c.value) {
			return fmt.Errorf("--%s %q: Azure takes no such name", c.flag, c.value)
		}
	}
	if o.EnrolmentGroup == "" || o.Certificate == "" {
		return fmt.Errorf("--enrolment-group and --certificate-name must not be empty")
	}
	if o.auth != "key" && o.auth != "login" {
		return fmt.Errorf("--auth %q: key or login is wanted", o.auth)
	}
	if o.poll <= 0 || o.timeout <= 0 {
		return fmt.Errorf("--poll and --timeout must be more than nothing")
	}
	return nil
}

func checkDeploy(o *options) error {
	switch {
	case o.Location == "":
		return fmt.Errorf("--location is missing")
	case o.EST == "" && o.CA == "":
		return fmt.Errorf("--est or --ca is missing: where does the operational CA come from?")
	case o.EST == "" && (o.Label != "" || o.ServerCA != ""):
		return fmt.Errorf("--est-label and --est-ca go with --est")
	case o.DropIn == "":
		return fmt.Errorf("--drop-in must not be empty")
	case o.Units < 0 || o.Units > 200:
		return fmt.Errorf("--units %d: 1 to 200 is wanted", o.Units)
	case !slices.Contains([]string{"", "F1", "S1", "S2", "S3"}, o.SKU):
		// The basic tiers know no IoT Edge.
		return fmt.Errorf("--sku %q: F1, S1, S2 or S3 is wanted; IoT Edge needs the free or the standard tier", o.SKU)
	case o.SKU == "F1" && o.Units > 1:
		return fmt.Errorf("--units %d: a free hub has one", o.Units)
	}
	if o.caKey != "" {
		key, err := ca.ReadKey(o.caKey)
		if err != nil {
			return err
		}
		o.CAKey = key
	}
	return nil
}

// complete gives names to what was given none.
func (o *options) complete() {
	o.only = deployment.Only{Hub: o.Hub, Service: o.Service}
	hub, service := deployment.Names(o.subscription, o.Group)
	o.Hub, o.Service = cmp.Or(o.Hub, hub), cmp.Or(o.Service, service)
}

func writeUsage(w io.Writer) {
	fmt.Fprint(w, "tpm2cloud-azure makes the cloud side of a fleet in Azure\n\nusage:\n")
	for _, v := range verbs {
		fmt.Fprintf(w, "  tpm2cloud-azure %-8s --resource-group NAME [flags]   %s\n", v.name, v.summary)
	}
	show := func(f *flag.Flag) {
		kind, text := flag.UnquoteUsage(f)
		fmt.Fprintf(w, "  --%-24s %s", strings.TrimSpace(f.Name+" "+kind), text)
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.Name != "subscription" {
			fmt.Fprintf(w, " (%s)", f.DefValue)
		}
		fmt.Fprintln(w)
	}
	common := flag.NewFlagSet("", flag.ContinueOnError)
	commonFlags(common, &options{})
	fmt.Fprint(w, "\nflags:\n")
	common.VisitAll(show)
	for _, v := range verbs {
		if v.flags == nil {
			continue
		}
		own := flag.NewFlagSet("", flag.ContinueOnError)
		v.flags(own, &options{})
		fmt.Fprintf(w, "\nflags of %s:\n", v.name)
		own.VisitAll(show)
	}
	fmt.Fprint(w, "\nThe account is that of \"az login\", or of AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET.\n"+
		"\nexit codes: 0 done; 64 usage; 65 refused (CA, enrolment group or server is not what it must be); 70 a defect;\n"+
		"  75 gave up for now, for status: not everything is present; 76 refused by Azure or the EST server;\n"+
		"  77 permission, no login; 78 configuration, wrong subscription\n")
}
