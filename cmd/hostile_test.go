package cmd

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
)

// A misbehaviour is one thing that an EST server does wrong, and what the device makes of it.
type misbehaviour struct {
	name string
	// What the server does, on one of three levels: with the connection, with TLS, and with the
	// answer to one operation.
	tcp    func(*hostileServer, *noting)
	tls    func(*hostileServer, *tls.Config)
	answer func(s *hostileServer, a *answering, request []byte)
	// only is the one operation at which it can go wrong; "": both.
	only string
	// unproven: the server has not shown who it is, and must hear nothing that is not for everybody.
	unproven bool
	// established is what happens after the handshake.
	established func(*noting)
	// proxy: it is the proxy that misbehaves, on the way to a server that is not reached.
	proxy bool
	// mtls: an LDevID is asked for as well, with the IDevID as TLS client certificate.
	mtls bool

	exit int
	says string // in the line of the error, or of the first try; a regular expression
	hint string // in the line of the hint, where the run comes to one
}

const (
	temporary = 75 // tried again within the budget
	refused   = 65
	byServer  = 76 // not asked again in this run
)

// The budget of a run, which what does not end is bounded by, and what a loaded machine may take
// for what does, and besides. The memory is what a device grants.
const (
	hostileBudget = 4 * time.Second
	hostileSlack  = 40 * time.Second
	mostMemory    = 40 << 10 // KiB
)

// timeIsOver is said of what does not end.
const timeIsOver = "in the time that was left"

const (
	brokenOff = "the answer breaks off"
	network   = "is there a network, and is server"
	noEST     = "is no EST server"
)

const (
	hostilePassword = "the password of the devices"
	hostileSecret   = "the-secret-of-the-devices"
)

// secretsOfAll are the credentials in every form that a server could get them in.
func secretsOfAll() []string {
	return []string{hostilePassword, hostileSecret, base64.StdEncoding.EncodeToString([]byte("factory:" + hostilePassword))}
}

// TestHostileServers runs the programs against servers that misbehave: a run is bounded in time and memory, says what
// is wrong in words and what to do, leaves nothing of it in the device, and tells its credentials
// to nobody but a server that has shown who it is. It runs alone: it keeps the processors busy, and others here have a
// budget of half a second.
func TestHostileServers(t *testing.T) {
	world := newHostileWorld(t)
	first := newHostileBoard(t, world)
	second := first.fork(t)
	second.enrolled(t, world, "idevid", "est-ba")
	never := world.serve(t, hostileCase{misbehaviour: misbehaviour{answer: answerWith("401 No", "", "")}, operation: "cacerts", method: "est-mtls"})
	if r := second.provision(t, "ldevid", "est-mtls", never); r.exit != byServer {
		t.Fatalf("exit code %d: %s", r.exit, r.said)
	}

	cases := map[string]chan hostileCase{"idevid": make(chan hostileCase), "ldevid": make(chan hostileCase)}
	var workers sync.WaitGroup
	work := func(b *hostileBoard, program, method string) {
		workers.Go(func() {
			for c := range cases[program] {
				t.Run(c.String(), func(t *testing.T) { b.run(t, world, c) })
			}
			// Nothing of all that is left in the device.
			t.Run("afterwards", func(t *testing.T) { b.enrolled(t, world, program, method) })
		})
	}
	// More than there are processors: most of a run is waiting.
	for range 10 {
		work(first.fork(t), "idevid", "est-ba")
	}
	for range 2 {
		work(second.fork(t), "ldevid", "est-mtls")
	}
	for _, c := range hostileCases(t, world) {
		cases[c.program] <- c
	}
	for _, c := range cases {
		close(c)
	}
	workers.Wait()
}

// TestLargeCertificate: a certificate for which there is no room in a TPM is no reason to try again, and there is
// a way out.
func TestLargeCertificate(t *testing.T) {
	world := newHostileWorld(t)
	first := newHostileBoard(t, world)
	for _, size := range []int{40_000, 70_000} {
		b := first.fork(t)
		large := hostileCase{misbehaviour: misbehaviour{answer: changed(t, largeExtension(size))}, operation: "simpleenroll"}
		r := b.provision(t, "idevid", "est-ba", world.serve(t, large))
		staged := filepath.Join(b.root, "var/lib/tpm2cloud/idevid/certificate.pem")
		if r.exit != refused || !strings.Contains(r.said, "cannot define the NV index 0x1c90000") || !strings.Contains(r.said, "move "+staged+" away") {
			t.Errorf("exit code %d: %s", r.exit, r.said)
		}
		if err := os.Remove(staged); err != nil {
			t.Fatal(err)
		}
		b.enrolled(t, world, "idevid", "est-ba")
	}
}

// A hostileCase is a misbehaviour at one operation, towards a device that enrols by one method.
type hostileCase struct {
	misbehaviour
	operation, program, method string
}

// budget is for the whole run. Where it is what ends one, it is short; else there is time for a
// machine that has much to do.
func (c hostileCase) budget() time.Duration {
	if strings.HasPrefix(c.says, timeIsOver) {
		return hostileBudget
	}
	return hostileSlack
}

// again says whether the run goes on: then it has shown all when it says that it tries again, and is
// ended.
func (c hostileCase) again() bool {
	return c.exit == temporary && !strings.HasPrefix(c.says, timeIsOver) && !strings.HasPrefix(c.says, "gave up for now")
}

func (c hostileCase) String() string { return fmt.Sprintf("%s/%s/%s", c.name, c.operation, c.method) }

func hostileCases(t *testing.T, world *hostileWorld) []hostileCase {
	var all []hostileCase
	for _, evil := range slices.Concat(wrongConnections(t, world), wrongProxies(world), wrongAnswers(), wrongCertificates(t)) {
		// The methods differ in the header that they have to lose, and in nothing else.
		for operation, method := range map[string]string{"cacerts": "est-ba", "simpleenroll": "est-secret"} {
			if evil.only == "" || evil.only == operation {
				all = append(all, hostileCase{evil, operation, "idevid", method})
			}
			if evil.mtls {
				all = append(all, hostileCase{evil, operation, "ldevid", "est-mtls"})
			}
		}
	}
	return all
}

// A hostileBoard is a device that has everything but a certificate.
type hostileBoard struct {
	*world
	tpm *tpmkit.Software
}

func newHostileBoard(t *testing.T, hostile *hostileWorld) *hostileBoard {
	t.Helper()
	b := boardOf(t, t.TempDir(), tpmkit.Start(t))
	vendor := tpmkit.NewVendor(t)
	vendor.Install(t, filepath.Join(b.root, "etc/tpm2cloud/ek-roots"))
	device := b.tpm.Open(t)
	tpmkit.PutNV(t, device, tpmkit.CertificateRSA, vendor.Certify(t, tpmkit.EK(t, device, tpm2.RSAEKTemplate)))
	if err := device.Close(); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{
		"server-ca.pem": string(pki.PEM(hostile.tls.Cert)), "etc/tpm2cloud/credentials/password": hostilePassword, "etc/tpm2cloud/credentials/secret": hostileSecret,
	} {
		path := filepath.Join(b.root, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	// Up to its first request.
	never := hostile.serve(t, hostileCase{misbehaviour: misbehaviour{answer: answerWith("401 No", "", "")}, operation: "cacerts"})
	if r := b.provision(t, "idevid", "est-ba", never); r.exit != byServer {
		t.Fatalf("exit code %d: %s", r.exit, r.said)
	}
	return b
}

// boardOf puts a TPM onto a board.
func boardOf(t *testing.T, root string, s *tpmkit.Software) *hostileBoard {
	t.Helper()
	b := &hostileBoard{&world{root: root, config: map[string]any{}}, s}
	for key, value := range map[string]any{
		"device.model": "Board", "device.serial": "SN-1", "device.mac": "02:00:00:00:00:2a", "tpm.device": "unix:/run/t/s",
		"ldevid.enroll.server_ca": "/server-ca.pem", "idevid.enroll.server_ca": "/server-ca.pem", "idevid.enroll.username": "factory", "idevid.enroll.password": "password", "idevid.enroll.secret": "secret",
	} {
		b.set(key, value)
	}
	socket := filepath.Join(root, "run/t")
	if err := errors.Join(os.MkdirAll(filepath.Dir(socket), 0o755), os.RemoveAll(socket), os.Symlink(s.Dir, socket)); err != nil {
		t.Fatal(err)
	}
	return b
}

// fork makes a board like this one.
func (b *hostileBoard) fork(t *testing.T) *hostileBoard {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command("cp", "-a", b.root, root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return boardOf(t, root, b.tpm.Fork(t))
}

// enrolled has the board enrol with a server that does nothing wrong.
func (b *hostileBoard) enrolled(t *testing.T, world *hostileWorld, program, method string) {
	t.Helper()
	if r := b.provision(t, program, method, world.serve(t, hostileCase{method: method})); r.exit != 0 {
		t.Fatalf("exit code %d: %s", r.exit, r.said)
	}
}

// A hostileResult is how a run ended.
type hostileResult struct {
	exit   int
	said   string
	took   time.Duration
	memory int64 // KiB, the most that the process had
}

func (b *hostileBoard) provision(t *testing.T, program, method string, s *hostileServer) hostileResult {
	t.Helper()
	b.set(program+".enroll.method", method)
	b.set(program+".enroll.server", fmt.Sprintf("127.0.0.1:%d", s.port()))
	b.set(program+".enroll.proxy", nil)
	b.set("run.budget", s.budget().String())
	if s.hostileCase.proxy {
		b.set(program+".enroll.server", "est.example")
		b.set(program+".enroll.proxy", fmt.Sprintf("http://127.0.0.1:%d", s.port()))
	}
	if err := b.write(); err != nil {
		t.Fatal(err)
	}
	memory := filepath.Join(t.TempDir(), "memory")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, filepath.Join(binaries, "tpm2cloud-"+program), "--root", b.root)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), envMemory + "=" + memory}
	if s.again() {
		cmd.Env = append(cmd.Env, envEnd+"=retry: ")
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	begin := time.Now()
	err = cmd.Run()
	r := hostileResult{said: said.String(), took: time.Since(begin)}
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		r.exit = failed.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(memory)
	if err == nil {
		r.memory, err = strconv.ParseInt(string(text), 10, 64)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// envMemory names the file that says how much memory a program took. What the kernel tells of a child process begins with the
// memory of the process that started it, and that of a test is large: so the test starts itself anew for
// each program, and that small one starts the program (see TestMain). It ends the program, as systemd does, after a
// line that begins with what envEnd says.
const (
	envMemory = "TPM2CLOUD_TEST_MEMORY"
	envEnd    = "TPM2CLOUD_TEST_END"
)

func measure(file string) int {
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Stdout, cmd.Env = os.Stdout, []string{"PATH=" + os.Getenv("PATH")}
	said, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	end := os.Getenv(envEnd)
	for lines := bufio.NewReader(said); err == nil; {
		var line string
		line, err = lines.ReadString('\n')
		os.Stderr.WriteString(line)
		if end != "" && strings.HasPrefix(line, end) {
			_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		}
	}
	_ = cmd.Wait() // how it ended is told below
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if err := os.WriteFile(file, strconv.AppendInt(nil, usage.Maxrss, 10), 0o600); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

var (
	errorLine = regexp.MustCompile(`(?m)^error: (.*)$`)
	hintLine  = regexp.MustCompile(`(?m)^hint: (.*)$`)
	retryLine = regexp.MustCompile(`(?m)^retry: (.*)$`)
)

// run holds one case.
func (b *hostileBoard) run(t *testing.T, world *hostileWorld, c hostileCase) {
	s := world.serve(t, c)
	s.elsewhere = world.serve(t, hostileCase{})
	r := b.provision(t, c.program, c.method, s)
	b.check(t, c, s, r)
	if t.Failed() {
		t.Logf("exit code %d after %s with %d KiB:\n%s", r.exit, r.took, r.memory, r.said)
	}
}

func (b *hostileBoard) check(t *testing.T, c hostileCase, s *hostileServer, r hostileResult) {
	if r.exit != c.exit {
		t.Errorf("exit code %d, want %d", r.exit, c.exit)
	}
	if r.took > hostileBudget+hostileSlack {
		t.Errorf("it took %s of a budget of %s", r.took, hostileBudget)
	}
	if r.memory > mostMemory {
		t.Errorf("it took %d KiB of memory, and may take %d", r.memory, mostMemory)
	}
	failures, hints := errorLine.FindAllStringSubmatch(r.said, -1), hintLine.FindAllStringSubmatch(r.said, -1)
	if len(failures) != 1 || len(hints) > 1 {
		t.Fatalf("%d errors, %d hints", len(failures), len(hints))
	}
	why := failures[0][1]
	if c.again() {
		if !strings.HasPrefix(why, "interrupted by a signal") {
			t.Fatalf("it did not try again: %s", why)
		}
		why = retryLine.FindStringSubmatch(r.said)[1]
	}
	if !strings.Contains(why, "cannot ") || len(why) > 2000 || !regexp.MustCompile(c.says).MatchString(why) {
		t.Errorf("the error says %q, want %q", why, c.says)
	}
	if c.hint != "" && !c.again() && (len(hints) == 0 || !strings.Contains(hints[0][1], c.hint)) {
		t.Errorf("the hint is %q, want %q", hints, c.hint)
	}
	if strings.ContainsAny(r.said, "\x1b\x00") || strings.Contains(r.said, "goroutine ") {
		t.Errorf("it is for no terminal: %q", r.said)
	}
	for _, file := range []string{"certificate.pem", "ca.pem"} {
		if _, err := os.Stat(filepath.Join(b.root, "var/lib/tpm2cloud", c.program, file)); err == nil {
			t.Errorf("there is a %s", file)
		}
	}

	requests, wire, _, shown := s.told()
	if c.unproven && c.operation == "cacerts" && (len(requests) > 0 || shown > 0) {
		t.Errorf("a server that has not shown who it is got %d requests and %d certificates", len(requests), shown)
	}
	if c.proxy && (!strings.HasPrefix(wire, "CONNECT est.example:443 HTTP/1.1\r\n") || strings.Contains(wire, "Authorization")) {
		t.Errorf("the proxy was told %q", wire)
	}
	_, wireElsewhere, visits, _ := s.elsewhere.told()
	if visits > 0 {
		t.Errorf("somebody else got %d visits", visits)
	}
	for _, secret := range secretsOfAll() {
		if strings.Contains(r.said, secret) {
			t.Errorf("a secret is in the output")
		}
		if strings.Contains(wire, secret) || strings.Contains(wireElsewhere, secret) {
			t.Errorf("a secret went over the wire in clear")
		}
	}
	for _, request := range requests {
		if !strings.HasPrefix(request.URL.Path, "/.well-known/est/") {
			t.Errorf("it asked for %s", request.URL)
		}
		if request.Header.Get("Accept-Encoding") != "" || request.Header.Get("Expect") != "" {
			t.Errorf("it sent %v", request.Header)
		}
		if (request.Header.Get("Authorization") != "") != (c.method == "est-ba") || (request.Header.Get("Secret-Value") != "") != (c.method == "est-secret") {
			t.Errorf("method %s sent %d headers", c.method, len(request.Header))
		}
	}
}
