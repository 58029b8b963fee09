package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
)

// evidence is where the transcripts of the scripts are kept, one file each, for somebody to read.
var evidence = flag.String("evidence", "", "folder for the transcripts of requests")

// update has the scripts take what they get for what they want.
var update = flag.Bool("update", false, "write what is compared into the scripts")

// binaries is where TestMain built this program, and the laboratory, whose EST server is not ours.
var binaries string

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "tpm2cloud-azure")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	binaries = dir
	for _, module := range []string{".", "../tpm2cloud-lab"} {
		c := exec.Command("go", "build", "-o", dir+"/", ".")
		c.Dir = module
		if out, err := c.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("cannot build %s: %w\n%s", module, err, out)
		}
	}
	return m.Run(), nil
}

// TestScripts runs testdata/*.txt.
func TestScripts(t *testing.T) {
	certificates := makeCertificates(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		Setup:               func(env *testscript.Env) error { return setup(env, certificates) },
		RequireExplicitExec: true,
		UpdateScripts:       *update,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"lab": cmdLab, "run": cmdRun, "have": cmdHave, "fault": cmdFault, "transcript": cmdTranscript,
			"interrupt": cmdInterrupt, "dropin": cmdDropIn, "apart": cmdApart,
		},
	})
}

// makeCertificates makes the CAs, good and bad, that scripts find in $WORK.
func makeCertificates(t *testing.T) map[string][]byte {
	root := pki.NewCA(t, "Root", nil)
	one := pki.NewCA(t, "Operational CA", root)
	two := pki.NewCA(t, "Another CA", root)
	three := pki.NewCA(t, "Third CA", root)
	leaf := root.Issue(t, pki.NewKey(t).Public(), one.Cert.Issuer)
	return map[string][]byte{
		"ca.pem": pki.PEM(one.Cert), "ca.key": one.KeyPEM(t), "chain.pem": pki.PEM(root.Cert, one.Cert),
		"other.pem": pki.PEM(two.Cert), "other.key": two.KeyPEM(t), "third.pem": pki.PEM(three.Cert), "both.pem": pki.PEM(one.Cert, two.Cert, root.Cert),
		"leaf.pem":    pki.PEM(leaf),
		"expired.pem": pki.PEM(pki.NewCA(t, "Expired CA", nil, pki.Years(2001, 2002)).Cert),
	}
}

type azureKey struct{}

func theAzure(ts *testscript.TestScript) *azure { return ts.Value(azureKey{}).(*azure) }

func setup(env *testscript.Env, certificates map[string][]byte) error {
	if err := writeAll(env.WorkDir, certificates); err != nil {
		return err
	}
	a, err := startAzure(env.WorkDir)
	if err != nil {
		return err
	}
	for value, name := range map[string]string{url.QueryEscape(clientSecret): "CLIENT-SECRET", subscription: "SUBSCRIPTION", tenant: "TENANT",
		"SharedAccessKey=" + hubKey: "SharedAccessKey=HUB-KEY"} {
		a.rewrite(value, name)
	}
	for _, name := range []string{"ca.pem", "other.pem", "third.pem"} {
		a.rewriteCertificate(certificates[name], name)
	}
	env.Values[azureKey{}] = a
	env.Defer(a.close)
	env.Setenv("PATH", binaries+string(os.PathListSeparator)+env.Getenv("PATH"))
	for key, value := range map[string]string{
		"SSL_CERT_FILE":   filepath.Join(env.WorkDir, "azure-ca.pem"),
		"AZURE_TENANT_ID": tenant, "AZURE_CLIENT_ID": clientID, "AZURE_CLIENT_SECRET": clientSecret,
		// No credential but those of the environment is looked for, so that no test leaves this machine.
		"AZURE_TOKEN_CREDENTIALS": "EnvironmentCredential",
		"AZURE_SUBSCRIPTION_ID":   subscription,
	} {
		env.Setenv(key, value)
	}
	return nil
}

// lab starts the EST server. EST is its address.
func cmdLab(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs("lab")
	c := exec.Command(filepath.Join(binaries, "tpm2cloud-lab"), append([]string{"serve", "--dir", dir}, args...)...)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	ts.Check(err)
	ts.Check(c.Start())
	ts.Defer(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		_ = c.Wait() // it ends by a signal
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.HasPrefix(line, "listening:") {
		ts.Fatalf("the laboratory does not listen: %q, %v", line, err)
	}
	var addresses map[string]string
	data, err := os.ReadFile(filepath.Join(dir, "lab.json"))
	ts.Check(err)
	ts.Check(json.Unmarshal(data, &addresses))
	u, err := url.Parse(addresses["est_url"])
	ts.Check(err)
	ts.Setenv("EST", u.Host)
	theAzure(ts).rewrite(u.Host, "EST")
	theAzure(ts).rewriteCertificate([]byte(ts.ReadFile("lab/operational-ca.pem")), "lab/operational-ca.pem")
}

func arguments(ts *testscript.TestScript, args []string) []string {
	return append([]string{args[0], "--resource-group", "fleet", "--cloud", ts.MkAbs("cloud.json"), "--poll", "10ms", "--timeout", "60s"}, args[1:]...)
}

// run CODE VERB ARGUMENT... runs the program and demands its exit code.
func cmdRun(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: run CODE VERB ARGUMENT...")
	}
	err := ts.Exec("tpm2cloud-azure", arguments(ts, args[1:])...)
	code := "0"
	if exit, ok := err.(*exec.ExitError); ok {
		code = fmt.Sprint(exit.ExitCode())
	} else if err != nil {
		code = err.Error()
	}
	check(ts, code, args[0], ts.ReadFile("stdout")+ts.ReadFile("stderr"))
}

// check is what every run owes, whatever it is about.
func check(ts *testscript.TestScript, code, want, said string) {
	if code != want {
		ts.Fatalf("exit code %s, want %s", code, want)
	}
	if code != "0" && !strings.Contains(said, "error: ") {
		ts.Fatalf("exit code %s without an error line", code)
	}
	if strings.Contains(said, "panic:") || strings.Contains(said, "goroutine ") {
		ts.Fatalf("the program panicked")
	}
	for _, secret := range []string{hubKey, dpsKey, clientSecret, token(armAudience), token(dpsAudience), "sig="} {
		if strings.Contains(said, secret) {
			ts.Fatalf("a secret stands in the output: %s", secret)
		}
	}
	a := theAzure(ts)
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.violations) > 0 {
		ts.Fatalf("requests that Azure does not take:\n%s", strings.Join(a.violations, "\n"))
	}
}

// have THING... sets what is in Azure before the program looks.
func cmdHave(ts *testscript.TestScript, neg bool, args []string) {
	theAzure(ts).setRoutes() // the fakes forget the operations that nobody has waited for
	s := theAzure(ts).state
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "polls": // how long operations take
			n, err := strconv.Atoi(value)
			ts.Check(err)
			s.polls = n
		case "unattested":
			s.unattested = true
		case "subscriptions":
			s.moreThanOne = true
		case "taken":
			s.taken[value] = true
		case "free":
			delete(s.taken, value)
		case "failure": // of long operations, CODE:MESSAGE; none without a value
			s.failure = nil
			if code, message, ok := strings.Cut(value, ":"); ok {
				s.failure = map[string]string{"code": code, "message": message}
			}
		case "hub-state":
			for _, h := range s.hubs {
				h.Properties.ProvisioningState = &value
			}
		case "stranger": // a resource of somebody else's in the group
			s.others = append(s.others, &armresources.GenericResourceExpanded{Name: &value, Type: to.Ptr("Microsoft.Storage/storageAccounts")})
		case "no-stranger":
			s.others = nil
		case "group": // a resource group that was not made here
			s.groups["fleet"] = &armresources.ResourceGroup{Name: to.Ptr("fleet"), Location: to.Ptr("westeurope")}
		case "untagged": // hub and service that were not made here
			for _, h := range s.hubs {
				h.Tags = nil
			}
			for _, d := range s.services {
				d.Tags = nil
			}
		case "untagged-dps":
			for _, d := range s.services {
				d.Tags = nil
			}
		case "no-hub":
			clear(s.hubs)
		case "unlinked":
			for _, d := range s.services {
				d.Properties.IotHubs = nil
			}
		case "no-certificates":
			for _, d := range s.services {
				clear(d.certificates)
			}
		case "unverified":
			for _, d := range s.services {
				for _, c := range d.certificates {
					c.Properties.IsVerified = to.Ptr(false)
				}
			}
		case "enrolment": // FILE with a group; "" removes it
			for _, d := range s.services {
				delete(d.groups, "iotedge-tpm2cloud")
				if value != "" {
					var g map[string]any
					ts.Check(json.Unmarshal([]byte(ts.ReadFile(value)), &g))
					d.groups["iotedge-tpm2cloud"] = g
				}
			}
		case "registrations": // FILE
			for _, d := range s.services {
				ts.Check(json.Unmarshal([]byte(ts.ReadFile(value)), &d.registrations))
			}
		default:
			ts.Fatalf("have: %q is not known", arg)
		}
	}
}

// fault SERVER METHOD PATH TIMES STATUS CODE MESSAGE [RETRY-AFTER] answers requests with an error; TIMES -1 is for ever.
func cmdFault(ts *testscript.TestScript, neg bool, args []string) {
	a := theAzure(ts)
	a.mu.Lock()
	defer a.mu.Unlock()
	if neg { // ! fault: no more
		a.faults = nil
		return
	}
	if len(args) < 7 {
		ts.Fatalf("usage: fault SERVER METHOD PATH TIMES STATUS CODE MESSAGE [RETRY-AFTER]")
	}
	times, err := strconv.Atoi(args[3])
	ts.Check(err)
	status, err := strconv.Atoi(args[4])
	ts.Check(err)
	f := &fault{server: args[0], method: args[1], path: regexp.MustCompile(args[2]), left: times, status: status, code: args[5], message: args[6]}
	if len(args) > 7 {
		f.retryAfter = args[7]
	}
	a.faults = append(a.faults, f)
}

// proof is a certificate of which only the stand-in can tell whether it is right.
var proof = regexp.MustCompile(`"MII[A-Za-z0-9+/=]{100,}"`)

// transcript FILE writes the requests since the last time to a file, to compare it: status, server, method, path and body.
func cmdTranscript(ts *testscript.TestScript, neg bool, args []string) {
	a := theAzure(ts)
	a.mu.Lock()
	defer a.mu.Unlock()
	text := ""
	for _, line := range a.transcript {
		text += proof.ReplaceAllString(line, `"PROOF"`) + "\n"
	}
	a.transcript, a.times = nil, nil
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
	ts.Logf("%s", text)
	if *evidence != "" {
		ts.Check(os.MkdirAll(*evidence, 0o755))
		ts.Check(os.WriteFile(filepath.Join(*evidence, ts.Name()+"-"+args[0]+".txt"), []byte(text), 0o644))
	}
}

// interrupt PATTERN CODE VERB ARGUMENT... runs the program until a request has been answered, and then sends SIGINT.
func cmdInterrupt(ts *testscript.TestScript, neg bool, args []string) {
	c := exec.Command(filepath.Join(binaries, "tpm2cloud-azure"), arguments(ts, args[2:])...)
	c.Dir = ts.MkAbs(".")
	for _, key := range []string{"SSL_CERT_FILE", "AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TOKEN_CREDENTIALS", "AZURE_SUBSCRIPTION_ID"} {
		c.Env = append(c.Env, key+"="+ts.Getenv(key))
	}
	_, err := c.StdinPipe() // somebody who types nothing
	ts.Check(err)
	var said strings.Builder
	c.Stdout, c.Stderr = &said, &said
	ts.Check(c.Start())
	theAzure(ts).await(regexp.MustCompile(args[0]))
	ts.Check(c.Process.Signal(os.Interrupt))
	_ = c.Wait() // the code says it
	ts.Check(os.WriteFile(ts.MkAbs("said"), []byte(said.String()), 0o600))
	ts.Logf("%s", said.String())
	check(ts, fmt.Sprint(c.ProcessState.ExitCode()), args[1], said.String())
}

// dropin FILE [beside=EXAMPLE] KEY=VALUE... has the configuration of the devices read a drop-in, beside that of an example or
// alone, and demands what it means to them.
func cmdDropIn(ts *testscript.TestScript, neg bool, args []string) {
	dir, wanted := ts.MkAbs("device"), args[1:]
	ts.Check(os.RemoveAll(dir))
	ts.Check(os.MkdirAll(filepath.Join(dir, "tpm2cloud.toml.d"), 0o755))
	ts.Check(os.WriteFile(filepath.Join(dir, "tpm2cloud.toml"), nil, 0o600))
	if example, ok := strings.CutPrefix(wanted[0], "beside="); ok {
		ts.Check(os.CopyFS(dir, os.DirFS(filepath.Join("../../debian/examples", example))))
		wanted = wanted[1:]
	}
	ts.Check(os.WriteFile(filepath.Join(dir, "tpm2cloud.toml.d", filepath.Base(args[0])), []byte(ts.ReadFile(args[0])), 0o600))
	c, err := config.Load(dir, "/")
	ts.Check(err)
	e := c.Edge
	got := map[string]string{"id_scope": e.IDScope, "global_endpoint": e.GlobalEndpoint, "server": e.EST.Server, "label": e.EST.Label, "server_ca": e.EST.ServerCA}
	for _, arg := range wanted {
		if key, value, _ := strings.Cut(arg, "="); got[key] != value {
			ts.Fatalf("%s is %q, want %q", key, got[key], value)
		}
	}
}

// apart SECONDS PATTERN demands that the last two requests that match were that far from each other, at least.
func cmdApart(ts *testscript.TestScript, neg bool, args []string) {
	seconds, err := strconv.ParseFloat(args[0], 64)
	ts.Check(err)
	if got := theAzure(ts).apart(regexp.MustCompile(args[1])); got < time.Duration(seconds*float64(time.Second)) {
		ts.Fatalf("only %s lie between the last two of %s", got, args[1])
	}
}
