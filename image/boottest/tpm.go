//go:build boot

package boottest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TPM is a software TPM as a vendor delivers it: with a certificate for its RSA
// endorsement key. It is off until somebody gives it power.
type TPM struct {
	State  string // the folder of its state
	Socket string // where it listens while it is on
	Trust  string // the vendor's CA certificates, in PEM
	cmd    *exec.Cmd
}

// One vendor made all TPMs.
var vendor struct {
	once sync.Once
	dir  string
	err  error
	lock sync.Mutex // its serial numbers are in a file
}

func makeVendor() {
	dir := scratch("vendor")
	vendor.dir = dir
	for name, text := range map[string]string{
		"localca.conf":    fmt.Sprintf("statedir = %[1]s\nsigningkey = %[1]s/issuer-key.pem\nissuercert = %[1]s/issuer.pem\ncertserial = %[1]s/serial\n", dir),
		"localca.options": "--platform-manufacturer tpm2cloud\n--platform-version 1\n--platform-model boottest\n",
		"setup.conf": fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %[2]s/localca.conf\ncreate_certs_tool_options = %[2]s/localca.options\nactive_pcr_banks = sha256\n",
			program("swtpm_localca"), dir),
	} {
		if vendor.err == nil {
			vendor.err = os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
		}
	}
}

// NewTPM makes another TPM.
func NewTPM(t testing.TB) *TPM {
	t.Helper()
	vendor.once.Do(makeVendor)
	must(t, vendor.err)
	dir := scratch("tpm")
	tpm := &TPM{State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "socket", "tpm.sock")}
	must(t, os.Mkdir(tpm.State, 0o700))
	must(t, os.Mkdir(filepath.Dir(tpm.Socket), 0o755))
	vendor.lock.Lock()
	command(t, nil, "swtpm_setup", "--tpm2", "--tpmstate", "dir://"+tpm.State, "--create-ek-cert", "--vmid", filepath.Base(dir),
		"--config", filepath.Join(vendor.dir, "setup.conf"), "--logfile", filepath.Join(dir, "setup.log"))
	vendor.lock.Unlock()
	tpm.Trust = read(t, filepath.Join(vendor.dir, "swtpm-localca-rootca-cert.pem")) + read(t, filepath.Join(vendor.dir, "issuer.pem"))
	// swtpm_setup leaves its keys in the TPM, which vendors do not.
	tpm.On(t)
	for _, handle := range tpm.Handles(t) {
		tpm.Tool(t, "tpm2_evictcontrol", "-Q", "-C", "o", "-c", handle)
	}
	tpm.Cut()
	t.Cleanup(tpm.Cut)
	return tpm
}

// Fork is another TPM with the same content, from here on.
func (tpm *TPM) Fork(t testing.TB) *TPM {
	t.Helper()
	dir := scratch("tpm")
	fork := &TPM{State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "socket", "tpm.sock"), Trust: tpm.Trust}
	must(t, os.Mkdir(filepath.Dir(fork.Socket), 0o755))
	command(t, nil, "cp", "-a", tpm.State, fork.State)
	t.Cleanup(fork.Cut)
	return fork
}

// On gives it power. Whoever may reach the folder of its socket may use it.
func (tpm *TPM) On(t testing.TB) {
	t.Helper()
	if tpm.cmd != nil {
		return
	}
	os.Remove(tpm.Socket)
	log, err := os.Create(tpm.State + ".log")
	must(t, err)
	defer log.Close()
	tpm.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+tpm.State,
		"--server", "type=unixio,path="+tpm.Socket, "--ctrl", "type=unixio,path="+tpm.Socket+".ctrl",
		"--flags", "not-need-init,startup-clear")
	tpm.cmd.Stdout, tpm.cmd.Stderr = log, log
	must(t, tpm.cmd.Start())
	// It says to nobody when it listens.
	await(t, 10*time.Second, "swtpm answers", func() bool { return tpm.try("tpm2_getrandom", "--hex", "8") == nil })
}

// Cut takes its power.
func (tpm *TPM) Cut() {
	if tpm.cmd == nil {
		return
	}
	tpm.cmd.Process.Kill()
	tpm.cmd.Wait()
	tpm.cmd = nil
}

// TCTI is how tpm2-tools and the PKCS#11 library reach it.
func (tpm *TPM) TCTI() string { return "swtpm:path=" + tpm.Socket }

func (tpm *TPM) environment() []string {
	return []string{"TPM2TOOLS_TCTI=" + tpm.TCTI(), "TPM2_PKCS11_TCTI=" + tpm.TCTI(), "TSS2_LOG=all+none"}
}

func (tpm *TPM) try(name string, args ...string) error {
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), tpm.environment()...)
	return c.Run()
}

// powered runs something with the power on, and leaves it as it was.
func (tpm *TPM) powered(t testing.TB, what func()) {
	t.Helper()
	if tpm.cmd == nil {
		tpm.On(t)
		defer tpm.Cut()
	}
	what()
}

// Tool runs a program of tpm2-tools on it and gives its output.
func (tpm *TPM) Tool(t testing.TB, name string, args ...string) (out string) {
	t.Helper()
	tpm.powered(t, func() { out = command(t, tpm.environment(), name, args...) })
	return out
}

// Refuses demands that the TPM does not do what a program of tpm2-tools asks.
func (tpm *TPM) Refuses(t testing.TB, name string, args ...string) {
	t.Helper()
	tpm.powered(t, func() {
		if tpm.try(name, args...) == nil {
			t.Errorf("the TPM does what it must refuse: %s %s", name, strings.Join(args, " "))
		}
	})
}

// Handles are those of its persistent objects.
func (tpm *TPM) Handles(t testing.TB) []string {
	t.Helper()
	return listed(tpm.Tool(t, "tpm2_getcap", "handles-persistent"))
}

// Transient are the handles of what is loaded, and of sessions.
func (tpm *TPM) Transient(t testing.TB) (handles []string) {
	t.Helper()
	for _, kind := range []string{"handles-transient", "handles-loaded-session", "handles-saved-session"} {
		handles = append(handles, listed(tpm.Tool(t, "tpm2_getcap", kind))...)
	}
	return handles
}

// listed are the items of a list in YAML, as tpm2_getcap prints it.
func listed(text string) (items []string) {
	for line := range strings.Lines(text) {
		if item, ok := strings.CutPrefix(strings.TrimSpace(line), "- "); ok {
			items = append(items, strings.ToLower(item))
		}
	}
	return items
}

// Key is the public key at a handle, in PEM.
func (tpm *TPM) Key(t testing.TB, handle string) string {
	t.Helper()
	file := filepath.Join(scratch("key"), "key.pem")
	tpm.Tool(t, "tpm2_readpublic", "-Q", "-c", handle, "-f", "pem", "-o", file)
	return read(t, file)
}

// NV is the content of an index, read as the owner.
func (tpm *TPM) NV(t testing.TB, index string) string {
	t.Helper()
	file := filepath.Join(scratch("nv"), "data")
	tpm.Tool(t, "tpm2_nvread", "-C", "o", "-o", file, index)
	return read(t, file)
}

// Permanent is a digest of all that the TPM keeps without power. A reset alone
// changes it, so both digests must be of one time with power.
func (tpm *TPM) Permanent(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("%x", sha256.Sum256([]byte(read(t, filepath.Join(tpm.State, "tpm2-00.permall")))))
}
