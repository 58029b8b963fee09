package cmd

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/pelletier/go-toml/v2"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
)

// world is what surrounds the device of one script.
type world struct {
	root      string
	config    map[string]any // the drop-in that set writes
	tpm       *tpmkit.Software
	lab       *exec.Cmd
	keyd      *exec.Cmd
	addresses map[string]string // lab.json
	snapshots map[string]string
	recording *recording // nil: nobody looks
}

type worldKey struct{}

func theWorld(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

func (w *world) end() {
	for _, c := range []*exec.Cmd{w.keyd, w.lab} {
		if c != nil {
			c.Process.Signal(syscall.SIGTERM)
			c.Wait()
		}
	}
	if w.tpm != nil {
		w.tpm.Cut()
		os.RemoveAll(w.tpm.Dir)
	}
}

// secrets are what must never be seen.
func (w *world) secrets() []string {
	list := []string{}
	for _, key := range []string{"password", "secret"} {
		if s := w.addresses[key]; s != "" {
			list = append(list, s)
		}
	}
	for _, pin := range []string{"user-pin", "so-pin"} {
		if b, err := os.ReadFile(filepath.Join(w.root, "var/lib/tpm2cloud/pins", pin)); err == nil {
			list = append(list, string(b))
		}
	}
	return list
}

func (w *world) log(ts *testscript.TestScript) []byte {
	data, err := os.ReadFile(w.addresses["log"])
	ts.Check(err)
	return data
}

// tb lets the kit's helpers fail the script.
type tb struct {
	testing.TB
	ts *testscript.TestScript
}

func (t tb) Helper()                   {}
func (t tb) Fatal(args ...any)         { t.ts.Fatalf("%s", fmt.Sprint(args...)) }
func (t tb) Fatalf(f string, a ...any) { t.ts.Fatalf(f, a...) }
func (t tb) Cleanup(f func())          { t.ts.Defer(f) }

// tpm [rsa|ecc|high-rsa|high-ecc|none|malformed] [-unknown] [-other] [-padded] [-chain] [-template|-nonce|-misplaced]
// starts a TPM as its vendor delivers it: with a certificate for its RSA
// (default) or P-256 key in the low or high range of the indices, with none, or
// with rubbish in its place. The vendor's root is trusted, except with
// -unknown; with -other the certificate is another TPM's, with -chain it is by
// an intermediate CA whose certificate is in NV too. The last three are what
// ownTemplate does.
func cmdTPM(ts *testscript.TestScript, neg bool, args []string) {
	w, t := theWorld(ts), tb{ts: ts}
	if w.tpm != nil { // the disk goes to another board
		w.tpm.Cut()
		ts.Check(os.RemoveAll(w.tpm.Dir))
		ts.Check(os.Remove(filepath.Join(w.root, "run/t")))
	}
	w.tpm = tpmkit.Start(t)
	w.set("tpm.device", "unix:/run/t/s")
	w.reach(ts)

	vendor := tpmkit.NewVendor(t)
	if !slices.Contains(args, "-unknown") {
		vendor.Install(t, filepath.Join(w.root, "etc/tpm2cloud/ek-roots"))
	}
	device := w.tpm.Open(t)
	index, template := tpmkit.CertificateRSA, tpm2.RSAEKTemplate
	for _, arg := range args {
		switch arg {
		case "none":
			ts.Check(w.write())
			return
		case "ecc":
			index, template = tpmkit.CertificateECC, tpm2.ECCEKTemplate
		case "high-rsa":
			index, template = tpmkit.CertificateHighRSA, tpm.EKTemplate(true, true)
		case "high-ecc":
			index, template = tpmkit.CertificateHighECC, tpm.EKTemplate(false, true)
		case "malformed":
			tpmkit.PutNV(t, device, index, []byte("this is no certificate"))
			ts.Check(w.write())
			return
		}
	}
	template = ownTemplate(t, device, index, template, args)
	var public any
	if slices.Contains(args, "-other") {
		other := tpmkit.Start(t)
		public = tpmkit.EK(t, other.Open(t), template)
	} else {
		public = tpmkit.EK(t, device, template)
	}
	if slices.Contains(args, "-chain") {
		vendor = vendor.Intermediate(t)
		tpmkit.PutNV(t, device, tpmkit.CertificateChain, vendor.Cert.Raw)
	}
	certificate := vendor.Certify(t, public)
	if slices.Contains(args, "-padded") {
		certificate = append(certificate, bytes.Repeat([]byte{0xff}, 300)...)
	}
	tpmkit.PutNV(t, device, index, certificate)
	ts.Check(w.write())
}

// reach is how the device and the script's own programs find the TPM.
func (w *world) reach(ts *testscript.TestScript) {
	// The socket must be below the root, and its path short.
	dir := w.tpm.Dir
	if w.recording != nil {
		dir = w.recording.bus.Dir
	}
	ts.Check(os.Symlink(dir, filepath.Join(w.root, "run/t")))
	ts.Setenv("TPM2TOOLS_TCTI", w.tcti())
	ts.Setenv("TPM2_PKCS11_TCTI", w.tcti())
	ts.Setenv("TPM2_PKCS11_STORE", ts.Getenv("STORE"))
	ts.Setenv("TPM2OPENSSL_TCTI", w.tcti())
}

// tcti is how tpm2-tools and the PKCS#11 library reach the TPM.
func (w *world) tcti() string {
	if w.recording != nil {
		return "swtpm:path=" + w.recording.bus.Socket
	}
	return w.tpm.TCTI()
}

// lab [ARGUMENT...] starts the cloud in a box and configures the device for it:
// IDevID by password, LDevID by IDevID, operational certificate by LDevID.
func cmdLab(ts *testscript.TestScript, neg bool, args []string) {
	w := theWorld(ts)
	dir := filepath.Join(w.root, "lab")
	w.lab = listen(ts, nil, append([]string{"serve", "--dir", dir}, args...)...)
	data, err := os.ReadFile(filepath.Join(dir, "lab.json"))
	ts.Check(err)
	ts.Check(json.Unmarshal(data, &w.addresses))
	for key, value := range w.addresses {
		if key == "password" || key == "secret" {
			continue // the programs' environment is searched for them
		}
		ts.Setenv("LAB_"+key, value)
		// host:port, as the configuration wants a server
		if u, err := url.Parse(value); err == nil && u.Host != "" {
			ts.Setenv("LAB_"+key+"_host", u.Host)
		}
	}
	for name, value := range map[string]string{"est-password": w.addresses["password"], "est-secret": w.addresses["secret"]} {
		ts.Check(os.WriteFile(filepath.Join(w.root, "etc/tpm2cloud/credentials", name), []byte(value+"\n"), 0o600))
	}
	for key, value := range map[string]any{
		"device.model": "Test Board", "device.serial": "SN-0042", "device.mac": "02:00:00:00:00:2a",
		"idevid.enroll.server": ts.Getenv("LAB_est_url_host"), "idevid.enroll.label": "idevid", "idevid.enroll.server_ca": "/lab/server-ca.pem",
		"idevid.enroll.username": w.addresses["username"], "idevid.enroll.password": "est-password", "idevid.enroll.secret": "est-secret",
		"ldevid.enroll.server": ts.Getenv("LAB_est_url_host"), "ldevid.enroll.label": "ldevid", "ldevid.enroll.server_ca": "/lab/server-ca.pem",
		"ldevid.enroll.username": w.addresses["username"], "ldevid.enroll.password": "est-password", "ldevid.enroll.secret": "est-secret",
		"edge.est.server": ts.Getenv("LAB_est_url_host"), "edge.est.label": "operational", "edge.est.server_ca": "/lab/server-ca.pem",
		"edge.est.username": w.addresses["username"], "edge.est.password": "est-password",
		"edge.id_scope": w.addresses["id_scope"], "edge.global_endpoint": w.addresses["dps_url"],
		"run.budget": "20s",
	} {
		w.set(key, value)
	}
	ts.Check(w.write())
}

// listen starts a part of the lab and waits until it listens.
func listen(ts *testscript.TestScript, env []string, args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(binaries, "tpm2cloud-lab"), args...)
	c.Env = append(os.Environ(), env...)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	ts.Check(err)
	ts.Check(c.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.HasPrefix(line, "listening:") {
		c.Process.Kill()
		c.Wait()
		ts.Fatalf("%s does not listen: %q, %v", args[0], line, err)
	}
	return c
}

// keyd installs the agent: the stand-ins of iotedge and of its key service,
// which opens the token as the real one does.
func cmdKeyd(ts *testscript.TestScript, neg bool, args []string) {
	w := theWorld(ts)
	ts.Check(os.MkdirAll(filepath.Join(w.root, "usr/bin"), 0o755))
	ts.Check(os.Symlink(filepath.Join(binaries, "tpm2cloud-lab"), filepath.Join(w.root, "usr/bin/iotedge")))
	w.keyd = listen(ts, []string{"TPM2_PKCS11_STORE=" + ts.Getenv("STORE"), "TPM2_PKCS11_TCTI=" + w.tcti()}, "keyd", "--root", w.root)
}

// agent runs the stand-in of the Identity Service on the files that
// tpm2cloud-edgecfg wrote, in the environment that its drop-in gives to keyd;
// it succeeds when DPS has assigned the device.
func cmdAgent(ts *testscript.TestScript, neg bool, args []string) {
	root := theWorld(ts).root
	err := ts.Exec("tpm2cloud-lab", append([]string{"agent", "--config", filepath.Join(root, "etc/aziot/config.toml"),
		"--dropin", filepath.Join(root, "etc/systemd/system/aziot-keyd.service.d/50-tpm2cloud.conf"),
		"--system-ca", ts.Getenv("LAB_server_ca"), "--state", ts.MkAbs("agent-state"), "--poll", "50ms"}, args...)...)
	if neg == (err == nil) {
		ts.Fatalf("the agent: %v", err)
	}
}

// set KEY=VALUE... overrides the configuration; KEY= removes the key.
func cmdSet(ts *testscript.TestScript, neg bool, args []string) {
	w := theWorld(ts)
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok {
			ts.Fatalf("usage: set KEY=VALUE...")
		}
		switch {
		case value == "":
			w.set(key, nil)
		case value == "true" || value == "false":
			w.set(key, value == "true")
		default:
			w.set(key, value)
		}
	}
	ts.Check(w.write())
}

func (w *world) set(key string, value any) {
	table := w.config
	parts := strings.Split(key, ".")
	for _, part := range parts[:len(parts)-1] {
		next, ok := table[part].(map[string]any)
		if !ok {
			next = map[string]any{}
			table[part] = next
		}
		table = next
	}
	if value == nil {
		delete(table, parts[len(parts)-1])
		return
	}
	table[parts[len(parts)-1]] = value
}

func (w *world) write() error {
	data, err := toml.Marshal(w.config)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(w.root, "etc/tpm2cloud/tpm2cloud.toml"), data, 0o644)
}

// cut cuts the board's power and gives it back.
func cmdCut(ts *testscript.TestScript, neg bool, args []string) {
	theWorld(ts).tpm.Reboot(tb{ts: ts})
}

// fault JSON switches a fault of the lab on; without an argument, all off.
func cmdFault(ts *testscript.TestScript, neg bool, args []string) {
	method, body := http.MethodDelete, ""
	if len(args) == 1 {
		method, body = http.MethodPost, args[0]
	}
	request, err := http.NewRequest(method, theWorld(ts).addresses["control_url"]+"/fault", strings.NewReader(body))
	ts.Check(err)
	answer, err := http.DefaultClient.Do(request)
	ts.Check(err)
	answer.Body.Close()
	if answer.StatusCode/100 != 2 {
		ts.Fatalf("the lab answers %s", answer.Status)
	}
}

// snapshot NAME remembers the device: every file below the root with its
// content, mode, owner, time and inode, the TPM's permanent state, and how much the
// lab has logged.
func cmdSnapshot(ts *testscript.TestScript, neg bool, args []string) {
	w := theWorld(ts)
	if w.snapshots == nil {
		w.snapshots = map[string]string{}
	}
	w.snapshots[args[0]] = w.picture(ts)
}

// unchanged NAME [asked] demands that the device is as it was at the snapshot,
// although it asked the lab something; ! unchanged, that it isn't.
func cmdUnchanged(ts *testscript.TestScript, neg bool, args []string) {
	w := theWorld(ts)
	before, now := strings.Split(w.snapshots[args[0]], "\n"), strings.Split(w.picture(ts), "\n")
	if len(args) > 1 {
		asked := func(line string) bool { return strings.HasPrefix(line, "lab ") }
		before, now = slices.DeleteFunc(before, asked), slices.DeleteFunc(now, asked)
	}
	if slices.Equal(before, now) == neg {
		for _, line := range now {
			if !slices.Contains(before, line) {
				ts.Logf("now: %s", line)
			}
		}
		for _, line := range before {
			if !slices.Contains(now, line) {
				ts.Logf("before: %s", line)
			}
		}
		ts.Fatalf("changed: %v", !neg)
	}
}

func (w *world) picture(ts *testscript.TestScript) string {
	var b strings.Builder
	ts.Check(filepath.WalkDir(w.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == filepath.Join(w.root, "lab") || path == filepath.Join(w.root, "run/tpm2cloud") {
			return fs.SkipDir // the status is of each run
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		if !info.Mode().IsRegular() {
			// The library makes and removes its lock file: a directory's time
			// says nothing.
			fmt.Fprintf(&b, "%s %v %d:%d\n", path, info.Mode(), stat.Uid, stat.Gid)
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v %d:%d %s %d %x\n", path, info.Mode(), stat.Uid, stat.Gid, info.ModTime().Format(time.RFC3339Nano), stat.Ino, sha256.Sum256(data))
		return nil
	}))
	if w.tpm != nil {
		fmt.Fprintf(&b, "TPM %s\n", w.tpm.State(tb{ts: ts}))
	}
	if w.lab != nil {
		fmt.Fprintf(&b, "lab %d\n", len(w.log(ts)))
	}
	return b.String()
}

// secret FILE MODE writes a file with the lab's password.
func cmdSecret(ts *testscript.TestScript, neg bool, args []string) {
	var mode fs.FileMode
	fmt.Sscanf(args[1], "%o", &mode)
	path := ts.MkAbs(args[0])
	ts.Check(os.WriteFile(path, []byte(theWorld(ts).addresses["password"]), 0o600))
	ts.Check(os.Chmod(path, mode))
}

// expire lets the LDevID certificate end an hour ago.
func cmdExpire(ts *testscript.TestScript, neg bool, args []string) {
	w := theWorld(ts)
	pki.End(tb{ts: ts}, filepath.Join(w.root, "var/lib/tpm2cloud/ldevid/certificate.pem"), w.addresses["ldevid_ca"], filepath.Join(w.root, "lab/ldevid-ca.key"))
}

// pkcs11 MECHANISM signs through PKCS#11 with pkcs11-tool, and has openssl
// verify the signature with the LDevID certificate.
func cmdPKCS11(ts *testscript.TestScript, neg bool, args []string) {
	w := theWorld(ts)
	pin, err := os.ReadFile(filepath.Join(w.root, "var/lib/tpm2cloud/pins/user-pin"))
	ts.Check(err)
	message := ts.MkAbs("message")
	ts.Check(os.WriteFile(message, []byte("signed by the LDevID"), 0o644))
	module, err := filepath.Glob("/usr/lib/*/pkcs11/libtpm2_pkcs11.so")
	if err != nil || len(module) == 0 {
		ts.Fatalf("no libtpm2_pkcs11 on this machine")
	}
	// The PIN is on this command line: a test's own, on a test's own token.
	arguments := []string{"--module", module[0], "--token-label", "edge", "--login", "--pin", string(pin),
		"--sign", "--label", "ldevid", "--mechanism", args[0],
		"--input-file", message, "--output-file", ts.MkAbs("signature")}
	if strings.HasPrefix(args[0], "ECDSA") {
		arguments = append(arguments, "--signature-format", "openssl")
	}
	err = ts.Exec("pkcs11-tool", arguments...)
	if neg {
		if err == nil {
			ts.Fatalf("pkcs11-tool signs")
		}
		return
	}
	ts.Check(err)
	chain, err := os.ReadFile(filepath.Join(w.root, "var/lib/tpm2cloud/ldevid/certificate.pem"))
	ts.Check(err)
	block, _ := pem.Decode(chain)
	leaf, err := x509.ParseCertificate(block.Bytes)
	ts.Check(err)
	der, err := x509.MarshalPKIXPublicKey(leaf.PublicKey)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("public.pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644))
	ts.Check(ts.Exec("openssl", "dgst", "-sha256", "-verify", ts.MkAbs("public.pem"), "-signature", ts.MkAbs("signature"), message))
}

// clean BUNDLE SECRET... unpacks a report into the folder "bundle" and demands
// that no secret of this device stands in it, and none of those given, however
// it is written.
func cmdClean(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: clean BUNDLE SECRET...")
	}
	secrets := append(theWorld(ts).secrets(), args[1:]...)
	if len(secrets) < 4 {
		ts.Fatalf("this device has %d secrets only, which proves little", len(secrets))
	}
	dir := ts.MkAbs("bundle")
	ts.Check(os.RemoveAll(dir))
	ts.Check(os.Mkdir(dir, 0o755))
	ts.Check(ts.Exec("tar", "-xzf", ts.MkAbs(args[0]), "--strip-components=1", "-C", dir))
	n := 0
	ts.Check(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text := strings.ToLower(path + "\n" + string(data))
		for _, secret := range secrets {
			for _, form := range []string{
				secret, hex.EncodeToString([]byte(secret)), url.QueryEscape(secret), url.PathEscape(secret),
				base64.StdEncoding.EncodeToString([]byte(secret)), base64.URLEncoding.EncodeToString([]byte(secret)),
			} {
				if strings.Contains(text, strings.ToLower(strings.TrimRight(form, "="))) {
					return fmt.Errorf("a secret stands in %s, as %q", path, form)
				}
			}
		}
		return nil
	}))
	if n < 10 {
		ts.Fatalf("there are %d files in the bundle", n)
	}
}
