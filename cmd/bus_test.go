package cmd

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"

	"github.com/google/go-tpm/tpm2"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tpm2cloud/tpm2cloud/pkg/store"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/bus"
	"github.com/tpm2cloud/tpm2cloud/pkg/token"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// recording is everything that an onlooker could see of a device: its TPM's
// bus, what "ps" shows of its programs, what they say, and its files.
type recording struct {
	bus    *bus.Proxy
	notify *net.UnixConn // stands for systemd

	mu       sync.Mutex
	programs map[int]string  // the names of our programs, by process
	ps       map[string]bool // the argument lists and environments, one as often as it differs
	said     bytes.Buffer    // standard output and error, and what systemd is told
	secrets  []secret        // that the script has made
}

// secret is something that nobody else may learn.
type secret struct {
	name  string
	value []byte
	// files are where it may lie, closed to everybody but its owner; patterns of
	// path.Match, below the root.
	files []string
}

// record puts a recorder between the TPM and everybody who uses it, and
// records what the programs say and show from here on.
func cmdRecord(ts *testscript.TestScript, neg bool, args []string) {
	w := theWorld(ts)
	// The programs must see to it by themselves that they leave no core dump,
	// whatever they are started with. Who is not root may not be able to.
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}); err != nil {
		ts.Logf("core dumps are not possible here: %v", err)
	}
	r := &recording{programs: map[int]string{}, ps: map[string]bool{}}
	r.bus = bus.Listen(tb{ts: ts}, w.tpm.Socket, func(e bus.Exchange) []byte {
		r.look(e.PID)
		return e.Answer
	})
	w.recording = r
	ts.Check(os.Remove(filepath.Join(w.root, "run/t")))
	w.reach(ts)

	// In the proxy's folder, because the path must be short.
	address := &net.UnixAddr{Name: filepath.Join(r.bus.Dir, "notify"), Net: "unixgram"}
	var err error
	r.notify, err = net.ListenUnixgram("unixgram", address)
	ts.Check(err)
	ts.Defer(func() { r.notify.Close() })
	raw, err := r.notify.SyscallConn()
	ts.Check(err)
	ts.Check(raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1) }))
	ts.Check(err)
	ts.Setenv("NOTIFY_SOCKET", address.Name)
}

// look notes what everybody may see of a process.
func (r *recording) look(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	proc := fmt.Sprintf("/proc/%d/", pid)
	exe, err := os.Readlink(proc + "exe")
	if err != nil {
		return
	}
	name := filepath.Base(exe)
	r.programs[pid] = name
	if filepath.Dir(exe) != binaries {
		return // a stranger's, that a test runs
	}
	for _, file := range []string{"cmdline", "environ"} {
		if seen, err := os.ReadFile(proc + file); err == nil {
			r.ps[name+" "+file+" "+string(seen)] = true
		}
	}
}

var noCore = regexp.MustCompile(`(?m)^Max core file size +0 +0 +bytes`)

// during watches one run of a program: it holds the run lock until the program
// says that it waits for it, and looks at it then. What it returns waits for
// the end of that.
func (r *recording) during(state string) (done func() error) {
	dir := store.Open(state, 0o755)
	lock, err := dir.TryLock("lock")
	if err != nil {
		return func() error { return err }
	}
	result := make(chan error, 1)
	go func() {
		defer dir.Close()
		defer lock.Unlock()
		result <- r.untilItWaits()
	}()
	return func() error {
		// A run that ends before it wants the lock is no run.
		err := <-result
		r.drain()
		return err
	}
}

func (r *recording) untilItWaits() error {
	for {
		message, pid, err := r.told()
		if err != nil {
			return err
		}
		if !strings.Contains(message, "STATUS=waiting: ") {
			continue
		}
		r.look(pid)
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		if err != nil {
			return err
		}
		if !noCore.Match(limits) {
			return fmt.Errorf("a program may write a core dump:\n%s", limits)
		}
		return nil
	}
}

// told is the next thing that systemd is told, and by which process.
func (r *recording) told() (string, int, error) {
	message, control := make([]byte, 4096), make([]byte, 128)
	n, cn, _, _, err := r.notify.ReadMsgUnix(message, control)
	if err != nil {
		return "", 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said.Write(append(message[:n:n], '\n'))
	parts, err := syscall.ParseSocketControlMessage(control[:cn])
	if err != nil || len(parts) == 0 {
		return "", 0, fmt.Errorf("a message to systemd without a sender: %v", err)
	}
	from, err := syscall.ParseUnixCredentials(&parts[0])
	if err != nil {
		return "", 0, err
	}
	return string(message[:n]), int(from.Pid), nil
}

// drain reads what a program that has ended left for systemd.
func (r *recording) drain() {
	raw, err := r.notify.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		for message := make([]byte, 4096); ; {
			n, _, err := syscall.Recvfrom(int(fd), message, syscall.MSG_DONTWAIT)
			if err != nil {
				return true
			}
			r.said.Write(append(message[:n:n], '\n'))
		}
	})
}

// hierarchies gives the owner, endorsement and lockout hierarchies random
// authorisation values, and the configuration their names.
func cmdHierarchies(ts *testscript.TestScript, neg bool, args []string) {
	w := theWorld(ts)
	device := w.tpm.Open(tb{ts: ts})
	for name, handle := range map[string]tpm2.TPMHandle{"owner": tpm2.TPMRHOwner, "endorsement": tpm2.TPMRHEndorsement, "lockout": tpm2.TPMRHLockout} {
		value := rand.Text()
		_, err := tpm2.HierarchyChangeAuth{
			AuthHandle: tpm2.AuthHandle{Handle: handle, Auth: tpm2.PasswordAuth(nil)},
			NewAuth:    tpm2.TPM2BAuth{Buffer: []byte(value)},
		}.Execute(device)
		ts.Check(err)
		w.credential(ts, name+"-auth", value)
		w.set("tpm."+name+"_auth", name+"-auth")
	}
	ts.Check(w.write())
}

// credential NAME makes a random secret, which no server knows.
func cmdCredential(ts *testscript.TestScript, neg bool, args []string) {
	theWorld(ts).credential(ts, args[0], rand.Text())
}

func (w *world) credential(ts *testscript.TestScript, name, value string) {
	const dir = "etc/tpm2cloud/credentials"
	ts.Check(os.WriteFile(filepath.Join(w.root, dir, name), []byte(value+"\n"), 0o600))
	if w.recording != nil {
		w.recording.secrets = append(w.recording.secrets, secret{name, []byte(value), []string{dir + "/" + name}})
	}
}

// searched looks for every secret of the device in everything that was
// recorded, and shows a table of what it looked for, and where.
func cmdSearched(ts *testscript.TestScript, neg bool, args []string) {
	w := theWorld(ts)
	r := w.recording
	r.drain()
	secrets := w.allSecrets(ts)

	var onBus []byte
	commands := map[string]int{}
	for _, e := range r.bus.Log() {
		onBus = append(append(onBus, e.Command...), e.Answer...)
		commands[r.programs[e.PID]]++
	}
	var shown []byte
	for s := range r.ps {
		shown = append(shown, s...)
	}
	files := w.files(ts)
	total := 0
	for _, f := range files {
		total += len(f.data)
	}
	for program, n := range commands {
		ts.Logf("recorded: %d commands of %s", n, program)
	}
	// What is no secret is found, so the search sees what it looks at.
	leaf, err := os.ReadFile(filepath.Join(w.root, "var/lib/tpm2cloud/idevid/certificate.pem"))
	ts.Check(err)
	block, _ := pem.Decode(leaf)
	for where, control := range map[string]struct{ all, part []byte }{
		"the bus":          {onBus, block.Bytes[:64]}, // on its way into NV
		"argument lists":   {shown, []byte("--root\x00" + w.root)},
		"the environment":  {shown, []byte("NOTIFY_SOCKET=")},
		"the output":       {r.said.Bytes(), []byte("ldevid-certificate ")},
		"what systemd saw": {r.said.Bytes(), []byte("STATUS=ldevid-certificate: present")},
	} {
		if !bytes.Contains(control.all, control.part) {
			ts.Fatalf("%q is not in %s: not everything was recorded", control.part, where)
		}
	}

	var table strings.Builder
	t := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "secret\tforms\tbus, %d B\targv and environment, %d B\toutput, %d B\tfiles, %d B\tit lies in\n", len(onBus), len(shown), r.said.Len(), total)
	found := false
	for _, s := range secrets {
		forms := formsOf(s.value)
		verdict := func(where []byte) string {
			for name, form := range forms {
				if bytes.Contains(where, form) {
					found = true
					return "FOUND (" + name + ")"
				}
			}
			return "not found"
		}
		heard, listed, told := verdict(onBus), verdict(shown), verdict(r.said.Bytes())
		inFiles, lies := "not found", []string{}
		for _, f := range files {
			for name, form := range forms {
				switch {
				case !bytes.Contains(f.data, form) && !bytes.Contains(f.joined, form):
					continue
				case f.mode.Perm()&0o077 != 0:
					found, inFiles = true, fmt.Sprintf("FOUND (%s) in %s, %v", name, f.path, f.mode)
				case !slices.ContainsFunc(s.files, func(p string) bool { ok, _ := filepath.Match(p, f.path); return ok }):
					found, inFiles = true, fmt.Sprintf("FOUND (%s) in %s, where it does not belong", name, f.path)
				case !slices.Contains(lies, f.path):
					lies = append(lies, f.path)
				}
			}
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", s.name, len(forms), heard, listed, told, inFiles, strings.Join(lies, " "))
	}
	fmt.Fprintln(t, "platform's value\t\trandom, and forgotten by who made it: \"sessions\" shows that it was hidden")
	t.Flush()
	ts.Logf("%s", table.String())
	if found {
		ts.Fatalf("a secret can be seen")
	}
}

// allSecrets are those of the script, those of the lab, and those of the device
// that can be had by somebody who has its PIN and its TPM. (The value that the
// platform hierarchy is closed with is random, and nobody knows it; that it was
// encrypted is what sessions tells.)
func (w *world) allSecrets(ts *testscript.TestScript) []secret {
	list := slices.Clone(w.recording.secrets)
	const credentials, agent, keyd, certd = "etc/tpm2cloud/credentials/", "etc/aziot/config.toml", "etc/aziot/keyd/config.d/*", "etc/aziot/certd/config.d/*"
	list = append(list,
		secret{"EST password", []byte(w.addresses["password"]), []string{credentials + "est-password", agent, certd}},
		secret{"EST secret", []byte(w.addresses["secret"]), []string{credentials + "est-secret"}})
	keys, err := filepath.Glob(filepath.Join(w.root, "lab/*.key"))
	ts.Check(err)
	for _, file := range keys {
		data, err := os.ReadFile(file)
		ts.Check(err)
		block, _ := pem.Decode(data)
		key, err := x509.ParseECPrivateKey(block.Bytes)
		ts.Check(err)
		scalar, err := key.Bytes()
		ts.Check(err)
		// Where a script has a CA key on the board.
		list = append(list, secret{"CA key " + filepath.Base(file), scalar, []string{"ca.key"}})
	}

	pin := map[string]string{}
	for _, name := range []string{"user-pin", "so-pin"} {
		data, err := os.ReadFile(filepath.Join(w.root, "var/lib/tpm2cloud/pins", name))
		ts.Check(err)
		pin[name] = string(data)
		// The agent reads it in its configuration.
		list = append(list, secret{name, data, []string{"var/lib/tpm2cloud/pins/" + name, agent, keyd, certd, "etc/aziot/identityd/config.d/*"}})
	}
	st, err := token.OpenStore(ts.Getenv("STORE"), token.ReadOnly)
	ts.Check(err)
	defer st.Close()
	tok, err := st.Token("edge")
	ts.Check(err)
	seals := tok.Seals
	userAuth, soAuth := token.SealAuth(pin["user-pin"], seals.UserSalt), token.SealAuth(pin["so-pin"], seals.SOSalt)
	list = append(list, secret{"user's seal, its value", userAuth, nil}, secret{"SO's seal, its value", soAuth, nil})

	device := tpm.New(w.tpm.Open(tb{ts: ts}), tpm.Secrets{})
	defer device.Close()
	srk, err := device.ReadPublic(tpm.HandleSRK)
	ts.Check(err)
	ts.Check(device.SaltTo(srk.Handle, srk.Public))
	wrapping, err := device.Unseal(tpm.Parent{Key: srk}, tpm.Blob{Public: seals.UserPublic, Private: seals.UserPrivate}, userAuth)
	ts.Check(err)
	other, err := device.Unseal(tpm.Parent{Key: srk}, tpm.Blob{Public: seals.SOPublic, Private: seals.SOPrivate}, soAuth)
	ts.Check(err)
	if !bytes.Equal(wrapping, other) {
		ts.Fatalf("the two seals hold two keys")
	}
	list = append(list, secret{"token's wrapping key", wrapping, nil})
	pairs, err := st.Keys(tok.ID, "")
	ts.Check(err)
	for _, pair := range pairs {
		auth, err := token.UnwrapAuth(wrapping, pair.WrappedAuth)
		ts.Check(err)
		list = append(list, secret{fmt.Sprintf("value of key %q", pair.Label), auth, nil})
	}
	return list
}

// formsOf are the ways in which a secret may be written down: as it is, in
// hexadecimal, in base64 wherever it stands in the text, what its digits stand
// for, and its digests.
func formsOf(value []byte) map[string][]byte {
	forms := map[string][]byte{}
	add := func(name string, v []byte) {
		forms[name] = v
		forms[name+", hex"] = []byte(hex.EncodeToString(v))
		forms[name+", HEX"] = []byte(strings.ToUpper(hex.EncodeToString(v)))
		for shift := range 3 {
			// The first and the last digits are of what stands beside it, too.
			text := base64.StdEncoding.EncodeToString(append(make([]byte, shift), v...))
			whole := text[(shift*8+5)/6 : (shift+len(v))*8/6]
			forms[fmt.Sprintf("%s, base64 at %d", name, shift)] = []byte(whole)
			forms[fmt.Sprintf("%s, base64url at %d", name, shift)] = []byte(strings.NewReplacer("+", "-", "/", "_").Replace(whole))
		}
	}
	add("as it is", value)
	if raw, err := hex.DecodeString(string(value)); err == nil {
		add("its digits", raw)
	}
	digest := sha256.Sum256(value)
	add("SHA-256", digest[:])
	// What the PKCS#11 library makes of a digest, of which half is used.
	forms["SHA-256, 32 digits"] = []byte(hex.EncodeToString(digest[:])[:32])
	return forms
}

type deviceFile struct {
	path   string // below the root
	mode   fs.FileMode
	data   []byte
	joined []byte // the lines as one: PEM breaks what it holds
}

// files are those of the device: all that is below its root but the cloud.
func (w *world) files(ts *testscript.TestScript) []deviceFile {
	var list []deviceFile
	ts.Check(filepath.WalkDir(w.root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name == filepath.Join(w.root, "lab") {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		below, err := filepath.Rel(w.root, name)
		list = append(list, deviceFile{below, info.Mode(), data, bytes.ReplaceAll(data, []byte("\n"), nil)})
		return err
	}))
	return list
}

// sessions [COMMAND...] judges by which sessions the commands on the bus were
// authorised and hidden, and shows a table of them, in which the commands must
// be.
func cmdSessions(ts *testscript.TestScript, neg bool, args []string) {
	r := theWorld(ts).recording
	opened := map[tpm2.TPMHandle]string{} // how each session was started
	count := map[string]int{}
	var wrong []string
	for _, e := range r.bus.Log() {
		sessions, parameters, err := e.Split()
		ts.Check(err)
		name, ok := commandNames[e.Code()]
		if !ok {
			name = fmt.Sprintf("command %#x", uint32(e.Code()))
		}
		if e.Code() == tpm2.TPMCCStartAuthSession && e.RC() == tpm2.TPMRCSuccess {
			how, err := started(e, parameters)
			ts.Check(err)
			opened[tpm2.TPMHandle(binary.BigEndian.Uint32(e.Answer[10:]))] = how
		}
		var how []string
		hidden, shown := false, false // the first parameter of the command, of the answer
		for _, s := range sessions {
			kind := opened[s.Handle]
			if s.Handle == tpm2.TPMRSPW {
				kind = "empty password"
				if len(s.Authorization) > 0 {
					kind = "PASSWORD IN CLEAR"
				}
			}
			salted := strings.Contains(kind, "salted")
			if s.Attributes&bus.Decrypt != 0 {
				kind += ", hides the command"
				hidden = hidden || salted
			}
			if s.Attributes&bus.Encrypt != 0 {
				kind += ", hides the answer"
				shown = shown || salted
			}
			how = append(how, kind)
		}
		line := fmt.Sprintf("%s\t%s\t%s", r.programs[e.PID], name, strings.Join(how, " + "))
		count[line]++
		if !strings.HasPrefix(r.programs[e.PID], "tpm2cloud-") {
			continue // a stranger's, that the script runs
		}
		switch all := strings.Join(how, " + "); {
		case strings.Contains(all, "CLEAR"):
			wrong = append(wrong, line)
		case strings.Contains(all, "HMAC, in the open"):
			wrong = append(wrong, line)
		case slices.Contains(carriesSecret, e.Code()) && !hidden:
			wrong = append(wrong, line)
		case e.Code() == tpm2.TPMCCUnseal && !shown:
			wrong = append(wrong, line)
		}
	}
	var table strings.Builder
	t := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "program\tcommand\tsessions\ttimes")
	for _, line := range slices.Sorted(maps.Keys(count)) {
		fmt.Fprintf(t, "%s\t%d\n", line, count[line])
	}
	t.Flush()
	ts.Logf("%s", table.String())
	if len(wrong) > 0 {
		ts.Fatalf("a secret can be heard, or be guessed from what is heard:\n%s", strings.Join(wrong, "\n"))
	}
	for _, command := range args {
		if !strings.Contains(table.String(), " "+command+" ") {
			ts.Fatalf("there is no %s among them", command)
		}
	}
}

// carriesSecret are commands whose first parameter is, or has in it, the value
// or the content of a new object.
var carriesSecret = []tpm2.TPMCC{tpm2.TPMCCCreate, tpm2.TPMCCCreateLoaded, tpm2.TPMCCHierarchyChanegAuth, tpm2.TPMCCObjectChangeAuth}

// started says how a session was started (Part 3, clause 11.1).
func started(e bus.Exchange, parameters []byte) (string, error) {
	for range 2 { // nonceCaller, encryptedSalt
		if len(parameters) < 2 || len(parameters) < 2+int(binary.BigEndian.Uint16(parameters)) {
			return "", fmt.Errorf("a session was started with %x", e.Command)
		}
		parameters = parameters[2+int(binary.BigEndian.Uint16(parameters)):]
	}
	kind := map[tpm2.TPMSE]string{tpm2.TPMSEHMAC: "HMAC", tpm2.TPMSEPolicy: "policy"}[tpm2.TPMSE(parameters[0])]
	if key := e.Handle(0); key != tpm2.TPMRHNull {
		return fmt.Sprintf("%s, salted to %#x", kind, uint32(key)), nil
	}
	return kind + ", in the open", nil
}

var commandNames = map[tpm2.TPMCC]string{
	tpm2.TPMCCClearControl: "ClearControl", tpm2.TPMCCContextLoad: "ContextLoad", tpm2.TPMCCContextSave: "ContextSave",
	tpm2.TPMCCCreate: "Create", tpm2.TPMCCCreateLoaded: "CreateLoaded", tpm2.TPMCCCreatePrimary: "CreatePrimary",
	tpm2.TPMCCDictionaryAttackLockReset: "DictionaryAttackLockReset", tpm2.TPMCCEvictControl: "EvictControl",
	tpm2.TPMCCFlushContext: "FlushContext", tpm2.TPMCCGetCapability: "GetCapability", tpm2.TPMCCHash: "Hash",
	tpm2.TPMCCHierarchyChanegAuth: "HierarchyChangeAuth", tpm2.TPMCCLoad: "Load", tpm2.TPMCCNVDefineSpace: "NV_DefineSpace",
	tpm2.TPMCCNVRead: "NV_Read", tpm2.TPMCCNVReadPublic: "NV_ReadPublic", tpm2.TPMCCNVWrite: "NV_Write", tpm2.TPMCCNVWriteLock: "NV_WriteLock",
	tpm2.TPMCCPolicySecret: "PolicySecret", tpm2.TPMCCReadPublic: "ReadPublic", tpm2.TPMCCRSADecrypt: "RSA_Decrypt",
	tpm2.TPMCCSign: "Sign", tpm2.TPMCCStartAuthSession: "StartAuthSession", tpm2.TPMCCTestParms: "TestParms", tpm2.TPMCCUnseal: "Unseal",
	tpm2.TPMCCGetRandom: "GetRandom", tpm2.TPMCCStirRandom: "StirRandom", tpm2.TPMCCLoadExternal: "LoadExternal",
}
