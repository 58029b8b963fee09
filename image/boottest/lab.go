//go:build boot

package boottest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Lab is a running laboratory: the CAs, their EST server, and the cloud.
type Lab struct {
	Dir    string
	Server string            // host:port of EST, for the machines
	DPS    string            // URL
	About  map[string]string // lab.json
	cmd    *exec.Cmd
}

// NewLab makes a laboratory and ends it with the test.
func NewLab(t testing.TB) *Lab {
	t.Helper()
	return labIn(t, scratch("lab"))
}

// labIn makes what is missing of a laboratory in a folder, and runs it.
func labIn(t testing.TB, dir string) *Lab {
	t.Helper()
	lab := &Lab{Dir: dir}
	lab.cmd = exec.Command(filepath.Join(top, "build/bin/tpm2cloud-lab"), "serve", "--dir", lab.Dir)
	lab.cmd.Stderr = os.Stderr
	out, err := lab.cmd.StdoutPipe()
	must(t, err)
	if err := lab.cmd.Start(); err != nil {
		t.Fatalf("cannot start the laboratory: %v; run make build", err)
	}
	t.Cleanup(func() {
		lab.cmd.Process.Kill()
		lab.cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.HasPrefix(line, "listening:") {
		t.Fatalf("the laboratory does not listen: %q, %v", line, err)
	}
	must(t, json.Unmarshal([]byte(read(t, filepath.Join(lab.Dir, "lab.json"))), &lab.About))
	u, err := url.Parse(lab.About["est_url"])
	must(t, err)
	lab.Server, lab.DPS = u.Host, lab.About["dps_url"]
	return lab
}

// Fault switches a fault on, as JSON ("tpm2cloud-lab serve --help").
func (lab *Lab) Fault(t testing.TB, fault string) {
	t.Helper()
	lab.faults(t, http.MethodPost, fault)
}

// ClearFaults switches all of them off.
func (lab *Lab) ClearFaults(t testing.TB) {
	t.Helper()
	lab.faults(t, http.MethodDelete, "")
}

func (lab *Lab) faults(t testing.TB, method, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, lab.About["control_url"]+"/fault", strings.NewReader(body))
	must(t, err)
	answer, err := http.DefaultClient.Do(request)
	must(t, err)
	answer.Body.Close()
	if answer.StatusCode/100 != 2 {
		t.Fatalf("the laboratory answers %s to %s %s", answer.Status, method, body)
	}
}

// Request is a line of the laboratory's log.
type Request struct {
	Time                                              time.Time
	Event, Operation, Label, Auth, Subject, ID, Fault string
	Status                                            int
}

// Requests is what was asked of the laboratory so far.
func (lab *Lab) Requests(t testing.TB) (list []Request) {
	t.Helper()
	for line := range strings.Lines(read(t, lab.About["log"])) {
		var r Request
		must(t, json.Unmarshal([]byte(line), &r))
		list = append(list, r)
	}
	return list
}

// Enrolments counts those that were granted for a label.
func (lab *Lab) Enrolments(t testing.TB, label string) (n int) {
	t.Helper()
	for _, r := range lab.Requests(t) {
		if r.Event == "enrol" && r.Label == label && r.Status == http.StatusOK {
			n++
		}
	}
	return n
}

// Await waits until a request like this has come, one after the first skip ones.
func (lab *Lab) Await(t testing.TB, skip int, what string, is func(Request) bool) {
	t.Helper()
	await(t, 60*time.Second, what, func() bool { return slices.ContainsFunc(lab.Requests(t)[skip:], is) })
}

// File is a file of a machine. Link makes it a symbolic link.
type File struct {
	Data string
	Mode fs.FileMode
	Link string
}

// Files are files of a machine, by their absolute paths.
type Files map[string]File

// Configuration is what an image and a fleet's package put into /etc/tpm2cloud:
// the manufacturer's identity by password, the owner's with it, and the cloud
// with that. trust are the CA certificates of TPM vendors, in PEM.
func (lab *Lab) Configuration(t testing.TB, serial, trust string) Files {
	t.Helper()
	return Files{
		"/etc/tpm2cloud/ek-roots/vendor.pem":      {Data: trust, Mode: 0o644},
		"/etc/tpm2cloud/server-ca.pem":            {Data: read(t, lab.About["server_ca"]), Mode: 0o644},
		"/etc/tpm2cloud/idevid-ca.pem":            {Data: read(t, lab.About["idevid_ca"]), Mode: 0o644},
		"/etc/tpm2cloud/credentials/est-password": {Data: lab.About["password"] + "\n", Mode: 0o600},
		"/etc/tpm2cloud/tpm2cloud.toml.d/60-bench.toml": {Mode: 0o644, Data: fmt.Sprintf(`[device]
model = "Bench"
serial = %q
mac = "02:00:00:00:00:01"

[idevid]
organization = "Bench Manufacturer"

[idevid.enroll]
method = "est-ba"
server = %[2]q
label = "idevid"
server_ca = "/etc/tpm2cloud/server-ca.pem"
username = %[3]q
password = "est-password"

[ldevid]
organization = "Bench Owner"
# For a board whose disk was written anew: what it kept at its enrolment is gone.
idevid_ca = "/etc/tpm2cloud/idevid-ca.pem"

[ldevid.enroll]
method = "est-mtls"
server = %[2]q
label = "ldevid"
server_ca = "/etc/tpm2cloud/server-ca.pem"

[edge]
method = "est-mtls"
id_scope = %[4]q
global_endpoint = %[5]q

[edge.est]
server = %[2]q
label = "operational"
server_ca = "/etc/tpm2cloud/server-ca.pem"
`, serial, lab.Server, lab.About["username"], lab.About["id_scope"], lab.DPS)},
	}
}

// Gate is an address of a server that is not there: connections are refused,
// and nobody else can take the port, until it is opened.
type Gate struct {
	Address string
	socket  int
	once    sync.Once
}

// Gate gives the machines another address of EST, which is closed.
func (lab *Lab) Gate(t testing.TB) *Gate {
	t.Helper()
	// A socket that is bound and does not listen is what the net package does not make.
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	must(t, err)
	must(t, syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	name, err := syscall.Getsockname(socket)
	must(t, err)
	gate := &Gate{Address: fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port), socket: socket}
	t.Cleanup(func() { gate.once.Do(func() { syscall.Close(socket) }) })
	lab.Server = gate.Address
	return gate
}

// Open lets connections through to the laboratory until the test ends.
func (gate *Gate) Open(t testing.TB, lab *Lab) {
	t.Helper()
	u, err := url.Parse(lab.About["est_url"])
	must(t, err)
	must(t, syscall.Listen(gate.socket, 16))
	file := os.NewFile(uintptr(gate.socket), gate.Address)
	listener, err := net.FileListener(file)
	must(t, err)
	gate.once.Do(func() { file.Close() })
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Error("the gate:", err)
				}
				return
			}
			go pass(in, u.Host)
		}
	}()
}

func pass(in net.Conn, to string) {
	defer in.Close()
	out, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer out.Close()
	go func() {
		io.Copy(out, in)
		out.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(in, out)
}
