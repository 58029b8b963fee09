package cmd

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// What is drawn in these tests is drawn from a seed, which a failure shows.
var (
	seed   = flag.Uint64("seed", uint64(time.Now().UnixNano()), "of what is drawn: programs, instants, power cuts")
	rounds = flag.Int("rounds", 3, "`number` of rounds of programs at once; 30 take a minute or two")
)

// machine is a board that programs run on, each in a process of its own.
type machine struct {
	*board
	t *testing.T
}

// newMachine makes a machine whose CAs are in files, on a TPM.
func newMachine(t *testing.T, s *tpmkit.Software, vendor *tpmkit.Vendor) *machine {
	t.Helper()
	d := &machine{newBoard(t, s, vendor), t}
	dropIns := filepath.Join(d.root, "etc/tpm2cloud/tpm2cloud.toml.d")
	if err := os.MkdirAll(dropIns, 0o755); err != nil {
		t.Fatal(err)
	}
	const more = "[run]\nbudget = \"60s\"\n[tpm]\ndevice = \"unix:/t/s\"\n[edge]\nmethod = \"dps\"\nid_scope = \"0ne00AAAAAA\"\napply = \"never\"\n"
	if err := os.WriteFile(filepath.Join(dropIns, "10-test.toml"), []byte(more), 0o644); err != nil {
		t.Fatal(err)
	}
	return d
}

// process is a run of one program.
type process struct {
	*exec.Cmd
	said bytes.Buffer // standard error
	name string
}

// start starts a program.
func (d *machine) start(name string, args ...string) *process {
	d.t.Helper()
	p := &process{Cmd: exec.Command(filepath.Join(binaries, "tpm2cloud-"+name), append([]string{"--root", d.root}, args...)...), name: name}
	p.Stderr = &p.said
	if err := p.Start(); err != nil {
		d.t.Fatal(err)
	}
	return p
}

// end waits for its end and gives its exit code, -1 where a signal ended it.
func (p *process) end() int {
	_ = p.Wait()
	return p.ProcessState.ExitCode()
}

// complete runs the three programs in their order, each of which must end well.
func (d *machine) complete() {
	d.t.Helper()
	for _, name := range []string{"idevid", "ldevid", "edgecfg"} {
		p := d.start(name)
		if code := p.end(); code != 0 {
			d.t.Fatalf("%s: exit code %d: %s", name, code, p.said.String())
		}
	}
}

// sound demands a device that has all its identities, once each.
func (d *machine) sound() {
	d.t.Helper()
	for _, name := range []string{"idevid", "ldevid", "edgecfg"} {
		p := d.start(name, "status")
		if code := p.end(); code != 0 {
			d.t.Errorf("status of %s: exit code %d: %s", name, code, p.said.String())
		}
	}
	d.converged(d.t, idevidSteps, end{keys: 4, indices: 2})
	store := filepath.Join(d.root, "var/lib/tpm2cloud/pkcs11/tpm2_pkcs11.sqlite3")
	for query, want := range map[string]string{
		"PRAGMA integrity_check":      "ok",
		"SELECT count(*) FROM tokens": "1",
		// A label is in hex, the attribute 3: one private and one public row.
		"SELECT count(*) FROM tobjects WHERE attrs LIKE '%\"6c6465766964\"%'": "2",
	} {
		out, err := exec.Command("sqlite3", store, query).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			d.t.Errorf("%s: %s (%v), want %s", query, got, err, want)
		}
	}
	state, err := tpm.New(d.tpm.Open(d.t), tpm.Secrets{}).State()
	if err != nil || state.LockoutCounter != 0 {
		d.t.Errorf("the TPM counts %d failed authorisations (%v)", state.LockoutCounter, err)
	}
	names, err := filepath.Glob(store + "?*")
	// A journal without a whole header, which a cut before its first sync leaves, is
	// none: SQLite passes over it, and the next one takes its place.
	names = slices.DeleteFunc(names, func(name string) bool { return name == store+"-journal" })
	if err != nil || len(names) != 0 {
		d.t.Errorf("left beside the store: %v (%v)", names, err)
	}
}

// Any programs, several of them the same, started within moments on a fresh
// board: none is harmed by another, and what came too early says so.
func TestTogether(t *testing.T) {
	t.Parallel()
	vendor, factory := manufactured(t)
	for round := range *rounds {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(*seed, uint64(round)))
			d := newMachine(t, factory.Fork(t), vendor)
			t.Logf("-seed %d", *seed)
			// Three of these or more; a status takes no lock.
			names := []string{"idevid", "ldevid", "edgecfg", "idevid", "ldevid", "idevid status", "ldevid status"}
			random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
			names = names[:3+random.IntN(len(names)-2)]
			var running []*process
			for _, name := range names {
				time.Sleep(time.Duration(random.IntN(20)) * time.Millisecond)
				program, verb, _ := strings.Cut(name, " ")
				running = append(running, d.start(program, strings.Fields(verb)...))
			}
			for i, p := range running {
				code := p.end()
				status := strings.HasSuffix(names[i], "status")
				switch {
				case code == 0:
				case status && (code == 75 || code == 65):
				case !status && p.name != "idevid" && code == 65 && strings.Contains(p.said.String(), "hint: "):
				default:
					t.Errorf("of %v, %s ended with %d: %s", names, names[i], code, p.said.String())
				}
			}
			d.complete()
			d.sound()
		})
	}
}

// The agent's key service uses the token, and makes keys in it, while
// tpm2cloud-ldevid must write to its store, and the power may be cut: the store
// stays whole, and the LDevID is there once.
func TestTokenInUse(t *testing.T) {
	t.Parallel()
	vendor, factory := manufactured(t)
	made := newMachine(t, factory.Fork(t), vendor)
	made.complete()
	made.tpm.Cut()
	for round := range *rounds {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(*seed, uint64(round)))
			t.Logf("-seed %d", *seed)
			d := newMachine(t, made.tpm.Fork(t), vendor)
			if out, err := exec.Command("cp", "-a", filepath.Join(made.root, "var"), d.root).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			// The CA is that of the device which was made.
			for _, name := range []string{"ca.pem", "ca.key"} {
				if err := copyFile(filepath.Join(made.root, name), filepath.Join(d.root, name), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			user := d.use(t)
			d.loseLDevID(t)
			d.configure(t, "[run]\nbudget = \"5s\"\n")
			writer := d.start("ldevid")
			cut := random.IntN(2) == 0
			if cut {
				time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond)
				d.tpm.Cut()
				for _, p := range []*exec.Cmd{user.cmd, writer.Cmd} {
					_ = p.Process.Kill()
				}
				_ = writer.end()
				_ = user.cmd.Wait()
				if err := d.tpm.Power(); err != nil {
					t.Fatal(err)
				}
			} else {
				code := writer.end()
				result := user.stop(t)
				// Without a resource manager the two may be short of slots: that is
				// no room in the TPM (75), or whatever the library says (69).
				if code != 0 && code != 69 && code != 75 || result.Uses == 0 {
					t.Errorf("ldevid ended with %d beside %+v: %s", code, result, writer.said.String())
				}
				d.release(t)
			}
			d.configure(t, "")
			d.complete()
			d.sound()
			// And the next start of the key service has the new key.
			user = d.use(t)
			if result := user.stop(t); result.Uses == 0 {
				t.Errorf("afterwards: %+v", result)
			}
		})
	}
}

// loseLDevID is somebody who removes the LDevID from the token and the TPM, so
// that another must be made.
func (d *machine) loseLDevID(t *testing.T) {
	t.Helper()
	store := filepath.Join(d.root, "var/lib/tpm2cloud/pkcs11/tpm2_pkcs11.sqlite3")
	if out, err := exec.Command("sqlite3", "-cmd", ".timeout 5000", store, "DELETE FROM tobjects WHERE attrs LIKE '%\"6c6465766964\"%'").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	opened := tpm.New(d.tpm.Open(t), tpm.Secrets{})
	key, err := opened.ReadPublic(tpm2.TPMHandle(tpm.HandleLDevID))
	if err == nil {
		err = opened.Evict(key)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// release does what the kernel's resource manager does when a program ends, and
// this TPM has none: the PKCS#11 library leaves objects loaded where a command
// found no slot, which is what happens here when two programs meet.
func (d *machine) release(t *testing.T) {
	t.Helper()
	opened := d.tpm.Open(t)
	for _, kind := range []tpm2.TPMHT{tpm2.TPMHTTransient, tpm2.TPMHTHMACSession, tpm2.TPMHTPolicySession} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(kind) << 24, PropertyCount: 64}.Execute(opened)
		if err != nil {
			t.Fatal(err)
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			t.Fatal(err)
		}
		for _, handle := range list.Handle {
			if _, err := (tpm2.FlushContext{FlushHandle: handle}).Execute(opened); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// tokenUser is a process that uses the token as the agent's key service does.
type tokenUser struct {
	cmd  *exec.Cmd
	out  *os.File
	said bytes.Buffer
}

type used struct {
	Uses, Made, Failures int
	Last                 string
}

// use starts one, and waits for its first signature.
func (d *machine) use(t *testing.T) *tokenUser {
	t.Helper()
	pin, err := os.ReadFile(filepath.Join(d.root, "var/lib/tpm2cloud/pins/user-pin"))
	if err != nil {
		t.Fatal(err)
	}
	uri := filepath.Join(d.root, "uri")
	if err := os.WriteFile(uri, fmt.Appendf(nil, "pkcs11:token=edge;object=ldevid?pin-value=%s", pin), 0o600); err != nil {
		t.Fatal(err)
	}
	module, found := (&config.Config{}).Module()
	if !found {
		t.Fatalf("no PKCS#11 module at %s", module)
	}
	u := &tokenUser{cmd: exec.Command(filepath.Join(binaries, "tpm2cloud-lab"), "use", "--uri-file", uri, "--module", module, "--own", "own")}
	u.cmd.Env = append(os.Environ(), "TPM2_PKCS11_STORE="+filepath.Join(d.root, "var/lib/tpm2cloud/pkcs11"), "TPM2_PKCS11_TCTI="+d.tpm.TCTI(), "TSS2_LOG=all+none")
	if u.out, err = os.Create(filepath.Join(d.root, "used")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.out.Close() })
	u.cmd.Stdout = u.out
	u.cmd.Stderr = &u.said
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.cmd.Process.Kill() })
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if data, err := os.ReadFile(u.out.Name()); err == nil && bytes.Contains(data, []byte("in use")) {
			return u
		}
		if time.Now().After(end) {
			_ = u.cmd.Process.Kill()
			_ = u.cmd.Wait()
			t.Fatalf("the token is not used within a minute: %s", u.said.String())
		}
	}
}

// stop ends it in order.
func (u *tokenUser) stop(t *testing.T) (result used) {
	t.Helper()
	if err := u.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := u.cmd.Wait(); err != nil {
		t.Fatalf("the user of the token: %v: %s", err, u.said.String())
	}
	data, err := os.ReadFile(u.out.Name())
	if err != nil {
		t.Fatal(err)
	}
	last := regexp.MustCompile(`(?m)^\{.*\}$`).Find(data)
	if err := json.Unmarshal(last, &result); err != nil {
		t.Fatal(errors.Join(err, errors.New(string(data))))
	}
	return result
}

// configure writes a drop-in that comes after all others.
func (d *machine) configure(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.root, "etc/tpm2cloud/tpm2cloud.toml.d/90-now.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
