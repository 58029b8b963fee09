//go:build amd64 || arm64

package cmd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/pelletier/go-toml/v2"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/powercut"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
)

// memory is what a board keeps without power.
type memory struct {
	disk powercut.Image
	tpm  []byte
}

// rig is a board that is switched on and off again and again, with other
// memories, beside a cloud of its own.
type rig struct {
	dir, root string
	tpm       *tpmkit.Software
	bus       string // the directory of the sockets by which programs reach the TPM
	shim      string // the PKCS#11 module that counts
	cloud     *exec.Cmd
	addresses map[string]string
	keyd      *exec.Cmd
}

// volatile is what no board keeps without power.
const volatile = "run"

// newRig starts the cloud in dir/lab, whose CAs are those of earlier, if that
// is another board.
func newRig(dir, shim string, earlier *rig) (*rig, error) {
	b := &rig{dir: dir, root: filepath.Join(dir, "r"), bus: filepath.Join(dir, "b"), shim: shim}
	b.tpm = &tpmkit.Software{Dir: filepath.Join(dir, "t"), Socket: filepath.Join(dir, "t", "s")}
	lab := filepath.Join(dir, "lab")
	for _, d := range []string{b.root, b.bus, b.tpm.Dir, lab} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	if earlier != nil {
		for _, pattern := range []string{"*.pem", "*.key", "accounts.json"} {
			files, err := filepath.Glob(filepath.Join(earlier.dir, "lab", pattern))
			if err != nil || len(files) == 0 {
				return nil, fmt.Errorf("no %s of a lab: %v", pattern, err)
			}
			for _, f := range files {
				if err := copyFile(f, filepath.Join(lab, filepath.Base(f)), 0o600); err != nil {
					return nil, err
				}
			}
		}
	}
	var err error
	if b.cloud, err = begin(nil, "serve", "--dir", lab); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(lab, "lab.json"))
	if err == nil {
		err = json.Unmarshal(data, &b.addresses)
	}
	return b, err
}

// begin starts a part of the lab and waits until it listens.
func begin(env []string, args ...string) (*exec.Cmd, error) {
	c := exec.Command(filepath.Join(binaries, "tpm2cloud-lab"), args...)
	c.Env = append(os.Environ(), env...)
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.HasPrefix(line, "listening:") {
		c.Process.Kill()
		c.Wait()
		return nil, fmt.Errorf("%s does not listen: %q, %v", args[0], line, err)
	}
	return c, nil
}

// end switches everything off for good.
func (b *rig) end() {
	b.off()
	if b.cloud != nil {
		b.cloud.Process.Kill()
		b.cloud.Wait()
	}
}

// on gives the board power, with what it keeps and a configuration.
func (b *rig) on(m memory, s *scenario) error {
	if err := m.disk.Write(b.root); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(b.root, volatile), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(b.bus, filepath.Join(b.root, volatile, "t")); err != nil {
		return err
	}
	if err := os.Symlink(b.shim, filepath.Join(b.root, volatile, "pkcs11.so")); err != nil {
		return err
	}
	if err := b.configure(s.settings); err != nil {
		return err
	}
	if err := b.tpm.Restore(m.tpm); err != nil {
		return err
	}
	if err := b.tpm.Power(); err != nil {
		return err
	}
	if !s.agent {
		return nil
	}
	var err error
	b.keyd, err = begin([]string{"TPM2_PKCS11_STORE=" + filepath.Join(b.root, "var/lib/tpm2cloud/pkcs11"),
		"TPM2_PKCS11_TCTI=swtpm:path=" + filepath.Join(b.bus, "s"), "TSS2_LOG=all+NONE"}, "keyd", "--root", b.root)
	return err
}

// off cuts the power of the TPM and of what is not the program that is traced.
func (b *rig) off() {
	if b.keyd != nil {
		b.keyd.Process.Kill()
		b.keyd.Wait()
		b.keyd = nil
	}
	b.tpm.Cut()
}

// configure writes the configuration, in which the cloud's addresses are
// those of this board's.
func (b *rig) configure(settings map[string]any) error {
	est, err := url.Parse(b.addresses["est_url"])
	if err != nil {
		return err
	}
	w := &world{config: map[string]any{}}
	for key, value := range map[string]any{
		"tpm.device":   "unix:/run/t/s",
		"device.model": "Test Board", "device.serial": "SN-0042", "device.mac": "02:00:00:00:00:2a",
		"run.budget":    "20s",
		"edge.id_scope": b.addresses["id_scope"], "edge.global_endpoint": b.addresses["dps_url"],
		"edge.est.server": est.Host, "edge.est.label": "operational", "edge.est.server_ca": "/etc/tpm2cloud/server-ca.pem",
		"edge.est.username": b.addresses["username"], "edge.est.password": "est-password",
	} {
		w.set(key, value)
	}
	for _, id := range []string{"idevid", "ldevid"} {
		for key, value := range map[string]any{
			"server": est.Host, "label": id, "server_ca": "/etc/tpm2cloud/server-ca.pem",
			"username": b.addresses["username"], "password": "est-password", "secret": "est-secret",
			"ca_certificate": "/etc/tpm2cloud/" + id + "-ca.pem", "ca_key": "/etc/tpm2cloud/" + id + "-ca.key",
		} {
			w.set(id+".enroll."+key, value)
		}
	}
	for key, value := range settings {
		w.set(key, value)
	}
	data, err := toml.Marshal(w.config)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.root, "etc/tpm2cloud/tpm2cloud.toml"), data, 0o644)
}

// cut is where a run is cut: at the n-th event of a kind.
type cut struct {
	kind  string
	place string // of an HTTP exchange: where the lab holds it
	powercut.Point
}

// The kinds of events.
const (
	kindTPM    = "tpm"
	kindFile   = "file"
	kindHTTP   = "http"
	kindPKCS11 = "pkcs11"
	// kindEnd is no event: the run ends well, and then the power is cut.
	kindEnd = "end"
)

// history is what a run did.
type history struct {
	status   syscall.WaitStatus
	took     time.Duration
	output   string
	commands []tpm2.TPMCC
	files    []powercut.Operation
	calls    []string
	exchange exchanges
}

type exchanges struct{ Connections, Requests int }

func (h *history) killed() bool {
	return h.status.Signaled() && h.status.Signal() == syscall.SIGKILL
}

// failed says what is wrong with a run that nothing cut.
func (h *history) failed() error {
	switch {
	case !h.status.Exited() || h.status.ExitStatus() != 0:
		return fmt.Errorf("it ended with %s, after %v:\n%s", ended(h.status), h.took.Round(time.Millisecond), h.output)
	case strings.Contains(h.output, "panic:") || strings.Contains(h.output, "goroutine "):
		return fmt.Errorf("it panicked:\n%s", h.output)
	}
	return nil
}

func ended(s syscall.WaitStatus) string {
	if s.Signaled() {
		return "the signal " + s.Signal().String()
	}
	return fmt.Sprintf("exit code %d", s.ExitStatus())
}

// run runs a program, and a verb of it where the name is followed by one. With a disk, which is told of what is synced, the
// operations on files are counted, and the power is cut where at is somewhere.
func (b *rig) run(program string, at cut, disk *powercut.Disk, args ...string) (_ *history, err error) {
	h := &history{}
	output, err := os.Create(filepath.Join(b.dir, "output"))
	if err != nil {
		return nil, err
	}
	defer output.Close()
	words := strings.Fields(program)
	name, verb := words[0], words[1:]
	p := &powercut.Program{
		Args: slices.Concat([]string{filepath.Join(binaries, "tpm2cloud-"+name), "--root", b.root}, verb, args),
		Env:  os.Environ(), Output: output, Root: b.root, Skip: []string{volatile}, Disk: disk,
	}
	var busCut powercut.Point
	switch at.kind {
	case kindTPM:
		busCut = at.Point
	case kindFile:
		p.Cut = at.Point
	case kindPKCS11:
		calls := filepath.Join(b.dir, "calls")
		if err := os.Remove(calls); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		p.Env = append(p.Env, "POWERCUT_MODULE="+pkcs11Module(), "POWERCUT_CALLS="+calls, fmt.Sprintf("POWERCUT_AT=%d %s", at.At, when(at.After)))
		defer func() {
			data, _ := os.ReadFile(calls) // a run may make no call
			h.calls = strings.Fields(string(data))
		}()
	}
	// The power is cut once, by whoever comes first, and when the program is there.
	started, once := make(chan struct{}), sync.Once{}
	power := func() {
		<-started
		once.Do(func() { p.Kill(); b.off() })
	}
	bus, err := powercut.NewBus(b.bus, b.tpm.Socket, busCut, power)
	if err != nil {
		return nil, err
	}
	defer func() {
		bus.Close()
		h.commands = bus.Commands()
	}()
	over, err := b.hold(at, power)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	defer func() { h.took = time.Since(begin) }()
	if disk == nil {
		h.status, err = plainly(p)
	} else {
		if err := p.Start(); err != nil {
			over()
			return nil, err
		}
		close(started)
		timeout := time.AfterFunc(patience, p.Kill)
		h.status, err = p.Wait()
		timeout.Stop()
	}
	if at.At > 0 && h.killed() {
		power()
	}
	h.exchange = over()
	h.files = p.Operations
	data, rerr := os.ReadFile(output.Name())
	h.output = string(data)
	return h, errors.Join(err, rerr)
}

// patience is more than any run takes.
const patience = time.Minute

// plainly runs a program that nobody needs to follow, which takes half the time.
func plainly(p *powercut.Program) (syscall.WaitStatus, error) {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	c := exec.CommandContext(ctx, p.Args[0], p.Args[1:]...)
	c.Env, c.Stdout, c.Stderr = p.Env, p.Output, p.Output
	err := c.Run()
	if c.ProcessState == nil {
		return 0, err
	}
	return c.ProcessState.Sys().(syscall.WaitStatus), nil
}

// hold has the lab hold an exchange, and cuts the power when it does. What it
// returns ends that, and says how many exchanges there were.
func (b *rig) hold(at cut, power func()) (func() exchanges, error) {
	set := map[string]any{"nth": 0}
	if at.kind == kindHTTP {
		set = map[string]any{"at": at.place, "nth": at.At}
	}
	if err := b.control(context.Background(), http.MethodPut, "/hold", set, nil); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	var waiting sync.WaitGroup
	if at.kind == kindHTTP {
		waiting.Go(func() {
			if b.control(ctx, http.MethodGet, "/held", nil, nil) == nil {
				power()
			}
		})
	}
	return func() (e exchanges) {
		stop()
		waiting.Wait()
		_ = b.control(context.Background(), http.MethodGet, "/hold", nil, &e) // no exchanges are zero
		return e
	}, nil
}

// control asks the lab's control endpoint.
func (b *rig) control(ctx context.Context, method, path string, question, answer any) error {
	var body io.Reader
	if question != nil {
		data, err := json.Marshal(question)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, b.addresses["control_url"]+path, body)
	if err != nil {
		return err
	}
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if reply.StatusCode/100 != 2 {
		return fmt.Errorf("the lab answers %s to %s %s", reply.Status, method, path)
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(reply.Body).Decode(answer)
}

// now is what the board keeps at this moment, whatever was synced.
func (b *rig) now() (memory, error) {
	disk, err := powercut.Read(b.root, volatile)
	if err != nil {
		return memory{}, err
	}
	state, err := b.tpm.Permanent()
	return memory{disk, state}, err
}

func when(after bool) string {
	if after {
		return "after"
	}
	return "before"
}

// pkcs11Module is libtpm2_pkcs11, or "".
func pkcs11Module() string {
	module, err := filepath.Glob("/usr/lib/*/pkcs11/libtpm2_pkcs11.so")
	if err != nil || len(module) == 0 {
		return ""
	}
	return module[0]
}
