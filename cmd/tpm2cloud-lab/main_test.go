package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-lab/internal/cloud"
)

// asProgram makes this test binary behave as the program itself: the library of a token takes its
// environment from its process, so the tests that use one need processes of their own.
const asProgram = "TPM2CLOUD_LAB_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// program prepares a call of this program.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	return cmd
}

// output runs a command that must succeed.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd.Args, err, out, stderr.Bytes())
	}
	return string(out)
}

// failure runs a command that must end with a code, and returns what it said to stderr.
func failure(t *testing.T, code int, cmd *exec.Cmd) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, _ := cmd.Output()
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("%v: exit code %d, not %d\n%s%s", cmd.Args, got, code, out, stderr.Bytes())
	}
	return stderr.String()
}

// background starts a command that serves, waits until it says that it listens, and at the end of
// the test checks that SIGTERM ends it in order.
func background(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Cancel = func() error { return nil } // the cleanup below ends it, in order
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() != 0 {
			t.Errorf("%v: %v", cmd.Args, err)
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "listening: ") {
		t.Fatalf("%v said %q, %v", cmd.Args, line, err)
	}
}

// serve starts a lab.
func serve(t *testing.T, flags ...string) cloud.Description {
	t.Helper()
	dir := t.TempDir()
	background(t, program(t, append([]string{"serve", "--dir", dir}, flags...)...))
	data, err := os.ReadFile(filepath.Join(dir, "lab.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d cloud.Description
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// testToken is a tpm2-pkcs11 token with an LDevID, on a TPM of its own.
type testToken struct {
	env     []string
	dropin  string // a drop-in of aziot-keyd with the same
	library string
	ldevid  string // certificate chain
}

const (
	testPIN   = "12 34%"
	tokenURI  = "pkcs11:token=edge?pin-value=12%2034%25"
	ldevidURI = "pkcs11:token=edge;object=ldevid?pin-value=12%2034%25"
)

func newToken(t *testing.T, lab cloud.Description, algorithm, commonName string) *testToken {
	t.Helper()
	dir := t.TempDir()
	tok := &testToken{
		library: "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so",
		dropin:  filepath.Join(dir, "50-test.conf"),
		ldevid:  filepath.Join(dir, "ldevid.pem"),
	}
	if found, err := filepath.Glob("/usr/lib/*/pkcs11/libtpm2_pkcs11.so"); err == nil && len(found) > 0 {
		tok.library = found[0]
	}
	tcti := startTPM(t)
	tok.env = []string{"TPM2_PKCS11_STORE=" + dir, "TPM2_PKCS11_TCTI=" + tcti}
	writeFile(t, tok.dropin, "[Service]\nEnvironment=TPM2_PKCS11_STORE="+dir+" \"TPM2_PKCS11_TCTI="+tcti+"\"\n")

	// Pkcs11-tool rather than tpm2_ptool: that one loads more at a time than a TPM without a resource
	// manager has room for.
	pkcs11Tool := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), "pkcs11-tool", append([]string{"--module", tok.library}, args...)...)
		cmd.Env = append(os.Environ(), tok.env...)
		return output(t, cmd)
	}
	pkcs11Tool("--init-token", "--slot-index", "0", "--label", "edge", "--so-pin", "sopin")
	pkcs11Tool("--init-pin", "--token-label", "edge", "--so-pin", "sopin", "--pin", testPIN)
	pkcs11Tool("--keypairgen", "--token-label", "edge", "--login", "--pin", testPIN, "--key-type", algorithm, "--label", "ldevid")
	read := pkcs11Tool("--read-object", "--token-label", "edge", "--type", "pubkey", "--label", "ldevid")
	public, err := x509.ParsePKIXPublicKey([]byte(read))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, tok.ldevid, issue(t, lab.LDevIDCA, commonName, public))
	return tok
}

// issue signs a device certificate with the files of one of the lab's CAs, as the enrolment method
// "ca" does, and returns it with the CA's chain in PEM.
func issue(t *testing.T, caFile, commonName string, public any) string {
	t.Helper()
	caPEM, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(caFile, strings.TrimSuffix(caFile, ".pem")+".key")
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: commonName},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, pair.Leaf, public, pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) + string(caPEM)
}

// startTPM starts an swtpm and returns its TCTI.
func startTPM(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for range 20 { // the TCTI wants two ports in a row, which somebody else may take meanwhile
		port := freePort(t)
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir,
			"--server", fmt.Sprintf("type=tcp,port=%d", port), "--ctrl", fmt.Sprintf("type=tcp,port=%d", port+1),
			"--flags", "not-need-init,startup-clear")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		if reachable(port+1, ended) {
			t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
			return fmt.Sprintf("swtpm:host=127.0.0.1,port=%d", port)
		}
		_ = cmd.Process.Kill()
		<-ended
	}
	t.Fatal("cannot start swtpm")
	return ""
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// reachable dials until somebody answers or the process has ended.
func reachable(port int, ended <-chan struct{}) bool {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			return true
		}
		select {
		case <-ended:
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
	return false
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
