package edgecfg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
	"unicode"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// applyStep has the agent take over the configuration. It is the one that
// touches aziot: it runs its programs, asks its keyd, and removes a certificate
// of its certd.
type applyStep struct{ p *Program }

func (s *applyStep) Name() string { return "apply" }

// The marks of what was begun, below the state directory. An apply is two or
// three moves of programs that are not ours, and after a power cut between them
// the agent's files look finished: "config apply" was run, but its services
// may not be up, or go on as the device of the old id scope. A mark is made
// before the first move and removed after the last; a clone that carries one does
// a move too many, which does no harm.
const (
	markApply       = "apply"       // keyd was not seen to open the key since
	markReprovision = "reprovision" // identityd still keeps its old device
)

func (s *applyStep) Observe(context.Context) (step.Observation, error) {
	p := s.p
	obs := step.Observation{Object: p.cfg.Path(superPath)}
	if p.cfg.Edge.Apply == config.ApplyNever {
		obs.State, obs.Detail = step.Present, `apply = "never": for somebody else to apply`
		return obs, nil
	}
	if p.tool() == "" {
		obs.State = step.Partial
		obs.Detail = "not applied"
		obs.Waiting = "aziot-edge is not installed; the next run after its installation applies the configuration"
		return obs, nil
	}
	w, err := p.want()
	if err != nil {
		return obs, err
	}
	why, err := p.unapplied(w)
	switch {
	case err != nil:
		return obs, classify(err)
	case why != "":
		obs.State, obs.Detail = step.Partial, "not applied: "+why
	case p.marked(markApply):
		obs.State, obs.Detail = step.Partial, "applied, and not yet seen to work"
	case p.marked(markReprovision):
		obs.State, obs.Detail = step.Partial, "applied, and to be registered anew"
	default:
		obs.State, obs.Detail = step.Present, "applied"
	}
	return obs, nil
}

func (s *applyStep) Act(ctx context.Context, _ step.Observation) error {
	p := s.p
	w, err := p.want()
	if err != nil {
		return err
	}
	if err := p.ready(ctx, w); err != nil {
		return err
	}
	if err := p.readableByCertd(w); err != nil {
		return err
	}
	why, err := p.unapplied(w)
	if err != nil {
		return classify(err)
	}
	if why != "" || p.marked(markApply) {
		if err := p.apply(ctx, w); err != nil {
			return err
		}
	}
	if !p.marked(markReprovision) {
		return nil
	}
	if err := p.run(ctx, w.secrets(), p.tool(), "system", "reprovision"); err != nil {
		return fmt.Errorf("cannot have the device registered anew: %w", err)
	}
	return p.unmark(markReprovision)
}

// apply has the configuration taken over and looks whether keyd can work with it.
func (p *Program) apply(ctx context.Context, w *wanted) error {
	// This must be known before the apply overwrites what it is judged by.
	why, err := p.reprovision(w)
	if err != nil {
		return classify(err)
	}
	if why != "" {
		if err := p.mark(markReprovision); err != nil {
			return err
		}
	}
	if err := p.mark(markApply); err != nil {
		return err
	}
	if w.super.attestation.issued != nil {
		if err := p.removeForeignCertificate(w.in.deviceID); err != nil {
			return classify(err)
		}
	}
	if err := p.reloadUnits(ctx, w.secrets()); err != nil {
		return err
	}
	// It stops all services, and so keyd with an old drop-in too.
	if err := p.run(ctx, w.secrets(), p.tool(), "config", "apply"); err != nil {
		return fmt.Errorf("cannot apply %s: %w", p.cfg.Path(superPath), err)
	}
	if why, err := p.unapplied(w); err != nil || why != "" {
		if err != nil {
			return classify(err)
		}
		return fmt.Errorf("cannot apply %s: %s reported success, and %s", p.cfg.Path(superPath), p.tool(), why)
	}
	// It says nothing of what became of the services.
	if err := p.askKeyd(ctx, w); err != nil {
		return err
	}
	return p.unmark(markApply)
}

// tool is the program that applies: the agent's, which configures its own
// daemon as well, else the Identity Service's; "" where neither is installed.
func (p *Program) tool() string {
	if p.hasEdge() {
		return p.cfg.Path("/usr/bin/iotedge")
	}
	if path := p.cfg.Path("/usr/bin/aziotctl"); exists(path) {
		return path
	}
	return ""
}

func (p *Program) hasEdge() bool { return exists(p.cfg.Path("/usr/bin/iotedge")) }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// removeForeignCertificate removes certd's operational certificate if it is for
// another name. identityd takes the one that is there and never looks at its
// name; with the new registration id, DPS would refuse it for good. identityd
// then requests another one, with a new key.
func (p *Program) removeForeignCertificate(deviceID string) error {
	dir := store.Open(p.cfg.Path("/var/lib/aziot/certd/certs"), 0o700)
	defer dir.Close()
	entries, err := os.ReadDir(dir.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot look for certificates of certd: %w", err)
	}
	for _, e := range entries {
		// The id "device-id", without its hyphen, and a digest of it.
		if !strings.HasPrefix(e.Name(), "deviceid-") || !strings.HasSuffix(e.Name(), ".cer") {
			continue
		}
		data, err := dir.Read(e.Name())
		if err != nil {
			return err
		}
		leaf, _, err := devid.ParseChainPEM(data)
		if err != nil || leaf.Subject.CommonName == deviceID {
			continue // certd's own business
		}
		if err := dir.Remove(e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// reloadUnits has systemd read keyd's drop-in, where systemd runs this root.
func (p *Program) reloadUnits(ctx context.Context, secrets []string) error {
	if root := p.cfg.Root(); root != "" && root != "/" || !exists("/run/systemd/system") {
		return nil
	}
	if err := p.run(ctx, secrets, "/usr/bin/systemctl", "daemon-reload"); err != nil {
		return fmt.Errorf("cannot have systemd read keyd's drop-in: %w", err)
	}
	return nil
}

const (
	// commandTime bounds one command. The longest, reprovision, talks to DPS,
	// which answers within seconds or not at all; apply stops the modules first.
	commandTime = 5 * time.Minute

	maxOutput = 2 << 10 // of a command, in an error
)

// run runs one program. Its output is told only when it fails, the end of it,
// and without the secrets of the configuration.
func (p *Program) run(ctx context.Context, secrets []string, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	var output tail
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &output, &output
	// Credentials of our own unit are not for others.
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	// A grandchild that keeps the pipe open must not hold us.
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil {
		err = nil // it did well, and left somebody behind who holds the pipe
	}
	if err == nil {
		return nil
	}
	switch ended := ctx.Err(); {
	case errors.Is(ended, context.DeadlineExceeded):
		err = fmt.Errorf("it did not end in time, and was killed (%w)", ended)
	case ended != nil:
		err = ended
	}
	command := strings.Join(append([]string{name}, args...), " ")
	said := output.without(secrets...)
	if said == "" {
		return fmt.Errorf("%s: %w", command, err)
	}
	return fmt.Errorf("%s: %w: %s", command, err, said)
}

// secrets are what no output may show.
func (w *wanted) secrets() []string {
	return []string{w.in.token.pin, percentEncode(w.in.token.pin), w.in.password}
}

// tail keeps the end of what is written to it, twice as much as is shown.
type tail struct {
	bytes.Buffer
	cut bool // the front was dropped
}

func (t *tail) Write(b []byte) (int, error) {
	n := len(b)
	if over := t.Len() + n - 2*maxOutput; over > 0 {
		t.cut = true
		dropped := len(t.Next(over))
		b = b[over-dropped:]
	}
	t.Buffer.Write(b)
	return n, nil
}

// without is the text in one line, with the secrets blotted out.
func (t *tail) without(secrets ...string) string {
	text := t.String()
	if t.cut {
		// The front may be the end of a secret.
		for _, s := range secrets {
			text = text[min(len(text), max(len(s)-1, 0)):]
		}
	}
	// Once as they are, and once as they are when the text is a line.
	text = oneLine(blotted(text, secrets...))
	for _, s := range secrets {
		text = blotted(text, oneLine(s))
	}
	if len(text) > maxOutput {
		text = "…" + text[len(text)-maxOutput:]
	}
	return strings.ToValidUTF8(text, "")
}

func blotted(text string, secrets ...string) string {
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "***")
		}
	}
	return text
}

// oneLine leaves out what a terminal would obey.
func oneLine(text string) string {
	printable := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	return strings.Join(strings.Fields(printable), " ")
}

// keydID is the id of the key that keyd must be able to open, and whether it
// must know it at all. The LDevID is "device-id" where it is what DPS sees, and
// "est-id" where it is what the EST server sees. With a password there is only
// the operational key, which is not made yet; but with a base slot keyd
// does not start without the token, so any answer is one.
func (w *wanted) keydID() (id string, preloaded bool) {
	switch {
	case w.super.attestation.preloaded != nil:
		return "device-id", true
	case w.super.est.identity != nil:
		return "est-id", true
	}
	return "device-id", false
}

// askKeyd asks keyd for the key, because nobody else does: "config apply" looks
// at no key, and "iotedge check" passes over a key that cannot be loaded.
func (p *Program) askKeyd(ctx context.Context, w *wanted) error {
	id, preloaded := w.keydID()
	socket := p.cfg.Path("/run/aziot/keyd.sock")
	client := keydClient(func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	})
	said := p.patiently(ctx, func(ctx context.Context) error { return askOnce(ctx, client, id, preloaded) })
	if said == nil {
		return nil
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	token := p.cfg.LDevID.Token
	return step.As(step.Unavailable,
		fmt.Sprintf("see journalctl -u aziot-keyd; its user must be in the groups tss and tpm2cloud-token (%s), the store is %s, the module is %s, the token is %q and the key %q",
			p.cfg.Path(dropInPath), p.cfg.Path(token.Store), w.in.module, token.Label, token.Key),
		fmt.Errorf("cannot use the agent's key %q over %s: %w", id, socket, said))
}

// ProveKey asks the agent's key service for the key that this configuration has
// it use.
func (p *Program) ProveKey(ctx context.Context) error {
	w, err := p.want()
	if err != nil {
		return err
	}
	return p.askKeyd(ctx, w)
}

// patiently asks until keyd, which is about to start, gives the answer, and
// returns what it said last; the end of the time says less. The service is this
// device's own: no jitter.
func (p *Program) patiently(ctx context.Context, ask func(context.Context) error) (said error) {
	ctx, cancel := context.WithTimeout(ctx, p.keydPatience)
	defer cancel()
	for wait := p.keydWait; ; wait += wait / 2 {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		if said == nil || ctx.Err() == nil {
			said = err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return said
		}
	}
}

// keydClient speaks HTTP over keyd's socket, to whoever listens there: an answer
// is bounded in time and size, and points nowhere else.
func keydClient(dial func(ctx context.Context, network, address string) (net.Conn, error)) *http.Client {
	return &http.Client{
		Timeout: 30 * time.Second, // the TPM is asked for the key, and may be busy
		Transport: &http.Transport{
			DialContext:            dial,
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 16 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// askOnce makes one request. What keyd says of a failure is little; its journal says more.
func askOnce(ctx context.Context, client *http.Client, id string, preloaded bool) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://keyd.sock/keypair/"+id+"?api-version=2021-05-01", nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10)); err != nil {
		return err
	}
	// 400 is how keyd says that it has no such key, and 404 is as good.
	unknown := answer.StatusCode == http.StatusBadRequest || answer.StatusCode == http.StatusNotFound
	switch {
	case answer.StatusCode == http.StatusOK, unknown && !preloaded:
		return nil
	case unknown:
		return errors.New("keyd found no such key in the token")
	}
	return fmt.Errorf("keyd answered %s", answer.Status)
}

// marksDir is the place of the marks below the state directory.
const marksDir = "edge"

func (p *Program) marks() *store.Dir { return store.Open(p.state(marksDir), 0o700) }

func (p *Program) marked(name string) bool {
	dir := p.marks()
	defer dir.Close()
	return dir.Has(name)
}

func (p *Program) mark(name string) error {
	dir := p.marks()
	defer dir.Close()
	return classify(dir.Write(name, nil, 0o600))
}

func (p *Program) unmark(name string) error {
	dir := p.marks()
	defer dir.Close()
	return classify(dir.Remove(name))
}
