//go:build amd64 || arm64

package cmd

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/powercut"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// The power is cut at every moment of every program: before and after each
// command to the TPM, operation on a file, exchange with a server and call of
// the PKCS#11 module. What was not synced by then may be lost. The board is
// switched on again, the program runs to its end, and the board must be as if
// nothing had happened.
//
// "make torture" cuts everywhere; go test cuts at a sample.
var (
	tortureAll    = flag.Bool("torture", false, "cut everywhere, not only at a sample of the points")
	tortureOnly   = flag.String("torture.only", "", "cut at this `point` only, as a failure names it, or at those of a SCENARIO or SCENARIO:0:KIND")
	tortureSeed   = flag.Uint64("torture.seed", 1, "`seed` of the pairs of cuts; 0: another one each time")
	torturePairs  = flag.Int("torture.pairs", 500, "`number` of pairs of cuts, of which the sample has some")
	tortureReport = flag.String("torture.report", "", "JSON `file` that the result is written to")
)

// scenario is a way that a board goes.
type scenario struct {
	name     string // PROGRAM/METHOD
	from     string // the scenario that it goes on from, or a factory
	programs []string
	settings map[string]any
	kinds    []string // at whose events the first program is cut, at all of them
	agent    bool     // the agent's stand-ins are installed
	moved    bool     // the disk comes to a board with another TPM
	recovery []string // what runs after a cut; nil: the programs
	rest     []string // what changes nothing at the end; nil: the programs
	newKey   bool     // the LDevID key is replaced

	start  memory
	golden *ending
}

// or is a list of programs, or those of the scenario where there is none.
func (s *scenario) or(programs []string) []string {
	if programs == nil {
		return s.programs
	}
	return programs
}

// ending is the end of a scenario that nothing cut.
type ending struct {
	memory
	chip  *chip
	shape string
	runs  []*history // of each program
}

// The factories that boards come from.
const (
	factoryECC = "P-256" // the TPM has an endorsement key of P-256, which swtpm makes quickly
	factoryRSA = "RSA"   // of RSA 2048, as most have
	elsewhere  = "other" // as the first, and another TPM
)

var everyKind = []string{kindTPM, kindFile, kindHTTP, kindPKCS11, kindEnd}

func scenarios() (list []*scenario) {
	enroll := func(program, method string) map[string]any { return map[string]any{program + ".enroll.method": method} }
	with := func(settings map[string]any, key string, value any) map[string]any {
		settings[key] = value
		return settings
	}
	for _, m := range []string{"ca", "est-secret", "est-ba"} {
		list = append(list, &scenario{name: "idevid/" + m, from: factoryECC, programs: []string{"idevid"}, settings: enroll("idevid", m), kinds: everyKind})
	}
	for _, m := range []string{"ca", "est-secret", "est-ba", "est-mtls"} {
		list = append(list, &scenario{name: "ldevid/" + m, from: "idevid/ca", programs: []string{"ldevid"}, settings: enroll("ldevid", m), kinds: everyKind})
	}
	for _, m := range []string{"dps", "est-ba", "est-mtls"} {
		list = append(list, &scenario{name: "edgecfg/" + m, from: "ldevid/ca", programs: []string{"edgecfg"}, agent: true,
			settings: map[string]any{"edge.method": m}, kinds: everyKind})
	}
	all := map[string]any{"idevid.enroll.method": "est-ba", "ldevid.enroll.method": "est-mtls", "edge.method": "est-mtls"}
	return append(list,
		&scenario{name: "idevid/ca-rsa", from: factoryRSA, programs: []string{"idevid"},
			settings: with(enroll("idevid", "ca"), "idevid.key", "rsa-2048"), kinds: []string{kindTPM}},
		&scenario{name: "ldevid/ca-rsa", from: "idevid/ca-rsa", programs: []string{"ldevid"},
			settings: with(enroll("ldevid", "ca"), "ldevid.key", "rsa-2048"), kinds: []string{kindTPM, kindPKCS11}},
		// The disk of a finished board in another one, which sets aside what it finds.
		&scenario{name: "moved/ca", from: "ldevid/ca", programs: []string{"idevid", "ldevid"}, moved: true,
			settings: map[string]any{"idevid.enroll.method": "ca", "ldevid.enroll.method": "ca", "run.on_foreign_state": "discard"},
			kinds:    []string{kindTPM, kindFile, kindEnd}},
		// A renewal, after which the device boots first.
		&scenario{name: "renew/est", from: "ldevid/ca", programs: []string{"ldevid renew --now"}, settings: enroll("ldevid", "est-mtls"), kinds: everyKind,
			recovery: []string{"ldevid", "ldevid renew --now"}, rest: []string{"ldevid"}},
		&scenario{name: "renew/est-new-key", from: "ldevid/ca", programs: []string{"ldevid renew --new-key"}, settings: enroll("ldevid", "est-mtls"), kinds: everyKind,
			recovery: []string{"ldevid", "ldevid renew --new-key"}, rest: []string{"ldevid"}, newKey: true},
		&scenario{name: "renew/ca-new-key", from: "ldevid/ca", programs: []string{"ldevid renew --new-key"}, settings: enroll("ldevid", "ca"), kinds: []string{kindFile, kindEnd},
			rest: []string{"ldevid"}, newKey: true},
		// A whole first boot, which is cut twice.
		&scenario{name: "boot/est", from: factoryECC, programs: []string{"idevid", "ldevid", "edgecfg"}, agent: true, settings: all, kinds: []string{kindEnd}},
	)
}

// point is a way of cutting: each cut is followed by a reboot.
type point struct {
	scenario *scenario
	outages  []outage
}

// outage is a cut of one of the scenario's programs, and which of the disks that
// may be left is gone on with.
type outage struct {
	program int
	at      cut
	disk    string // "": each that is another one
}

// The disks that may be left by a cut; see package powercut.
const (
	diskKept   = "kept"
	diskStrict = "strict"
	diskHollow = "hollow"
)

var survivors = []string{diskKept, diskStrict, diskHollow}

func (p point) String() string {
	var b strings.Builder
	b.WriteString(p.scenario.name)
	for _, o := range p.outages {
		fmt.Fprintf(&b, ":%s", o)
	}
	return b.String()
}

func (o outage) String() string {
	where := o.at.place
	if o.at.kind != kindHTTP {
		where = when(o.at.After)
	}
	text := fmt.Sprintf("%d:%s:%d:%s", o.program, o.at.kind, o.at.At, where)
	if o.disk != "" {
		text += ":" + o.disk
	}
	return text
}

// parsePoint reads what String wrote.
func parsePoint(text string, scenarios []*scenario) (p point, err error) {
	name, rest, _ := strings.Cut(text, ":")
	i := slices.IndexFunc(scenarios, func(s *scenario) bool { return s.name == name })
	fields := strings.Split(rest, ":")
	if i < 0 || len(fields) < 4 {
		return p, fmt.Errorf("%q is no point", text)
	}
	p.scenario = scenarios[i]
	for len(fields) >= 4 {
		o := outage{at: cut{kind: fields[1]}}
		if o.program, err = strconv.Atoi(fields[0]); err != nil || o.program >= len(p.scenario.programs) {
			return p, fmt.Errorf("%q is no point: %q is no program", text, fields[0])
		}
		if o.at.At, err = strconv.Atoi(fields[2]); err != nil {
			return p, fmt.Errorf("%q is no point: %w", text, err)
		}
		o.at.put(fields[3])
		fields = fields[4:]
		if len(fields) > 0 && slices.Contains(survivors, fields[0]) {
			o.disk, fields = fields[0], fields[1:]
		}
		p.outages = append(p.outages, o)
	}
	if len(fields) > 0 {
		return p, fmt.Errorf("%q is no point", text)
	}
	return p, nil
}

// put puts the cut into one of the places of its kind.
func (c *cut) put(place string) {
	if c.kind == kindHTTP {
		c.place = place
	} else {
		c.After = place == "after"
	}
}

// places are where an event of a kind can be cut.
func places(kind string) []string {
	switch kind {
	case kindHTTP:
		return []string{"request", "answer", "half"}
	case kindEnd:
		return []string{"after"}
	case kindFile:
		// What is there after one is there before the next thing that happens,
		// which is another one, a command, an exchange or the end.
		return []string{"before"}
	}
	return []string{"before", "after"}
}

// events is how many events of a kind a run had.
func (h *history) events(kind string) int {
	switch kind {
	case kindTPM:
		return len(h.commands)
	case kindFile:
		return len(h.files)
	case kindPKCS11:
		return len(h.calls)
	case kindHTTP:
		return h.exchange.Requests
	case kindEnd:
		return 1
	}
	return 0
}

// torture is a run of the suite.
type torture struct {
	t         *testing.T
	rigs      []*rig
	scenarios []*scenario

	mu        sync.Mutex
	rows      map[string]*row // by scenario and kind
	failures  []string
	said      []string // of the failures: shown after the table, where one looks
	recovered int
	done      int
}

// row is a line of the table.
type row struct {
	Scenario  string `json:"scenario"`
	Kind      string `json:"kind"`
	Points    int    `json:"points"`
	Converged int    `json:"converged"`
	Failed    int    `json:"failed"`
}

func TestTorture(t *testing.T) {
	if err := powercut.Refused(); err != nil {
		t.Skipf("this system lets no program be traced: %v", err)
	}
	start := time.Now()
	seed := *tortureSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	tt := &torture{t: t, scenarios: scenarios(), rows: map[string]*row{}}
	tt.switchOn()
	points := tt.points(rand.New(rand.NewPCG(seed, seed)))
	fmt.Printf("%d cuts\n", len(points))
	tt.cutAt(points)
	tt.report(seed, time.Since(start))
}

// switchOn builds the boards, as many as can work at once, and the golden ends.
func (tt *torture) switchOn() {
	t := tt.t
	dir, err := os.MkdirTemp(ramDisk(), "cut")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	shim := filepath.Join(dir, "pkcs11.so")
	compileShim(t, shim)
	var first *rig
	for i := range min(4, runtime.NumCPU()) {
		at := filepath.Join(dir, strconv.Itoa(i))
		if err := os.Mkdir(at, 0o700); err != nil {
			t.Fatal(err)
		}
		b, err := newRig(at, shim, first)
		t.Cleanup(func() {
			if b != nil {
				b.end()
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		}
		tt.rigs = append(tt.rigs, b)
	}
	factories := tt.factories()
	for _, s := range tt.scenarios {
		if err := tt.complete(s, factories); err != nil {
			t.Fatalf("%s, without a cut: %v", s.name, err)
		}
	}
}

// ramDisk is where files are quick; what would be left of them is worked out,
// not tried.
func ramDisk() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}

// compileShim compiles the PKCS#11 module that counts.
func compileShim(t *testing.T, to string) {
	headers, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	if err != nil {
		t.Fatalf("cannot find the header of PKCS#11: %v", err)
	}
	c := exec.Command("cc", "-shared", "-fPIC", "-Wall", "-Wno-unused-function", "-Wno-cast-function-type", "-Wl,-z,nodelete",
		"-I", strings.TrimSpace(string(headers)), "-o", to, "../pkg/testkit/powercut/testdata/pkcs11.c")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("cannot compile the PKCS#11 module: %v\n%s", err, out)
	}
}

// factories are boards as they come from there: a TPM with a certificate of
// its vendor, and an image with a configuration.
func (tt *torture) factories() map[string]memory {
	t, b := tt.t, tt.rigs[0]
	etc := filepath.Join(b.root, "etc/tpm2cloud")
	for _, d := range []string{"etc/tpm2cloud/credentials", "usr/bin", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(b.root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	vendor := tpmkit.NewVendor(t)
	vendor.Install(t, filepath.Join(etc, "ek-roots"))
	lab := filepath.Dir(b.addresses["log"])
	for _, name := range []string{"server-ca.pem", "idevid-ca.pem", "idevid-ca.key", "ldevid-ca.pem", "ldevid-ca.key"} {
		if err := copyFile(filepath.Join(lab, name), filepath.Join(etc, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, secret := range map[string]string{"est-password": "password", "est-secret": "secret"} {
		if err := os.WriteFile(filepath.Join(etc, "credentials", name), []byte(b.addresses[secret]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	disk, err := powercut.Read(b.root)
	if err != nil {
		t.Fatal(err)
	}
	manufacture := func(index tpm2.TPMHandle, template tpm2.TPMTPublic) memory {
		chip := tpmkit.Start(t)
		device := chip.Open(t)
		tpmkit.PutNV(t, device, index, vendor.Certify(t, tpmkit.EK(t, device, template)))
		chip.Cut()
		state, err := chip.Permanent()
		if err != nil {
			t.Fatal(err)
		}
		return memory{disk, state}
	}
	return map[string]memory{
		factoryECC: manufacture(tpmkit.CertificateECC, tpm2.ECCEKTemplate),
		factoryRSA: manufacture(tpmkit.CertificateRSA, tpm2.RSAEKTemplate),
		elsewhere:  manufacture(tpmkit.CertificateECC, tpm2.ECCEKTemplate),
	}
}

// complete goes a scenario to its end.
func (tt *torture) complete(s *scenario, factories map[string]memory) error {
	s.start = factories[s.from]
	for _, earlier := range tt.scenarios {
		if earlier.name == s.from {
			s.start = earlier.golden.memory
		}
	}
	if s.moved {
		s.start.tpm = factories[elsewhere].tpm
	}
	if s.agent {
		s.start.disk = maps.Clone(s.start.disk)
		s.start.disk["usr/bin/iotedge"] = powercut.Entry{Mode: os.ModeSymlink | 0o777, Data: filepath.Join(binaries, "tpm2cloud-lab")}
	}
	b := tt.rigs[0]
	if err := b.on(s.start, s); err != nil {
		return err
	}
	defer b.off()
	disk, err := powercut.NewDisk(b.root, volatile)
	if err != nil {
		return err
	}
	defer disk.Close()
	g := &ending{}
	for _, program := range s.programs {
		at := cut{}
		if strings.HasPrefix(program, "ldevid") {
			at.kind = kindPKCS11
			if err := b.configure(s.counting()); err != nil {
				return err
			}
		}
		h, err := b.run(program, at, disk)
		if err != nil {
			return err
		}
		if err := h.failed(); err != nil {
			return err
		}
		g.runs = append(g.runs, h)
		if err := b.configure(s.settings); err != nil {
			return err
		}
	}
	if g.chip, err = b.look(); err != nil {
		return err
	}
	if g.memory, err = b.now(); err != nil {
		return err
	}
	g.shape = g.disk.Shape()
	s.golden = g
	return b.good(s, g.chip, g.disk, true)
}

// counting are the settings with the PKCS#11 module that counts.
func (s *scenario) counting() map[string]any {
	settings := maps.Clone(s.settings)
	settings["ldevid.token.module"] = "/" + volatile + "/pkcs11.so"
	return settings
}

// good demands the end of a scenario.
func (b *rig) good(s *scenario, chip *chip, disk powercut.Image, sign bool) error {
	wrong := []error{chip.same(s.golden.chip), b.identities(chip, disk)}
	if shape := disk.Shape(); shape != s.golden.shape {
		wrong = append(wrong, fmt.Errorf("other files are there than without the cut:\n%s", lines(shape, s.golden.shape)))
	}
	if sign && chip.keys[tpm.HandleLDevID] != nil {
		wrong = append(wrong, b.signs(disk))
	}
	return errors.Join(append(wrong, b.idle(s))...)
}

// idle demands that another run of the programs changes nothing and asks nobody.
func (b *rig) idle(s *scenario) error {
	before, err := b.now()
	if err != nil {
		return err
	}
	for _, program := range s.or(s.rest) {
		h, err := b.run(program, cut{}, nil)
		if err != nil {
			return err
		}
		if err := h.failed(); err != nil {
			return fmt.Errorf("a second run: %w", err)
		}
		if h.exchange != (exchanges{}) {
			return fmt.Errorf("a second run of %s has asked the server %d times", program, h.exchange.Requests)
		}
	}
	return b.unchanged(before, "a second run")
}

// unchanged demands that nothing was written since.
func (b *rig) unchanged(before memory, by string) error {
	after, err := b.now()
	if err != nil {
		return err
	}
	if diff := before.disk.Diff(after.disk); len(diff) > 0 {
		return fmt.Errorf("%s has changed files:\n  %s", by, strings.Join(diff, "\n  "))
	}
	if !bytes.Equal(before.tpm, after.tpm) {
		return fmt.Errorf("%s has changed the TPM", by)
	}
	return nil
}

// points are where the suite cuts.
func (tt *torture) points(random *rand.Rand) (list []point) {
	if p, err := parsePoint(*tortureOnly, tt.scenarios); err == nil {
		return []point{p}
	}
	for _, s := range tt.scenarios {
		list = append(list, s.points()...)
	}
	for range *torturePairs {
		list = append(list, tt.pair(random))
	}
	switch {
	case *tortureOnly != "":
		list = slices.DeleteFunc(list, func(p point) bool { return !strings.HasPrefix(p.String()+":", *tortureOnly+":") })
	case !*tortureAll:
		n := 0
		list = slices.DeleteFunc(list, func(point) bool { n++; return n%sampled != 0 })
	}
	return list
}

// sampled: go test cuts at one of so many points.
const sampled = 40

// points are all single cuts of a scenario's first program.
func (s *scenario) points() (list []point) {
	add := func(kind string, n int, places ...string) {
		for i := range n {
			for _, place := range places {
				at := cut{kind: kind, Point: powercut.Point{At: i + 1}}
				at.put(place)
				list = append(list, point{s, []outage{{at: at}}})
			}
		}
	}
	for _, kind := range s.kinds {
		add(kind, s.golden.runs[0].events(kind), places(kind)...)
		if kind == kindHTTP {
			add(kind, s.golden.runs[0].exchange.Connections, "connection")
		}
	}
	return list
}

// pair is a cut by chance, and another one in the boot that follows.
func (tt *torture) pair(random *rand.Rand) point {
	p := point{scenario: tt.scenarios[random.IntN(len(tt.scenarios))]}
	for len(p.outages) < 2 {
		o := outage{program: random.IntN(len(p.scenario.programs)), disk: survivors[random.IntN(len(survivors))]}
		h := p.scenario.golden.runs[o.program]
		o.at.kind = everyKind[random.IntN(len(everyKind)-1)] // not at the end
		n := h.events(o.at.kind)
		if n == 0 {
			continue
		}
		o.at.At = 1 + random.IntN(n)
		where := places(o.at.kind)
		o.at.put(where[random.IntN(len(where))])
		p.outages = append(p.outages, o)
	}
	return p
}

// cutAt tries all points, as many at once as there are rigs.
func (tt *torture) cutAt(points []point) {
	work := make(chan point)
	var workers sync.WaitGroup
	for _, b := range tt.rigs {
		workers.Go(func() {
			for p := range work {
				tt.try(b, p, p.scenario.start, 0)
			}
		})
	}
	for _, p := range points {
		work <- p
	}
	close(work)
	workers.Wait()
}

// try cuts at the i-th outage of a point and goes on with each disk that may be
// left: to the next outage, or to the end.
func (tt *torture) try(b *rig, p point, from memory, i int) {
	p.outages = slices.Clone(p.outages)
	states, err := b.cut(p.scenario, from, p.outages[i])
	// What an earlier cut has left to do may have fewer events.
	if over, ok := errors.AsType[*notReached](err); ok && i > 0 {
		o := &p.outages[i]
		switch {
		case over.events > 0:
			o.at.At = 1 + (o.at.At-1)%over.events
		case over.commands > 0:
			o.at = cut{kind: kindTPM, Point: powercut.Point{At: 1 + (o.at.At-1)%over.commands}}
		default: // all was done before
			o.at = cut{kind: kindEnd, Point: powercut.Point{At: 1, After: true}}
		}
		states, err = b.cut(p.scenario, from, *o)
	}
	if err != nil {
		tt.tried(p, err)
		return
	}
	for _, left := range states {
		p.outages = slices.Clone(p.outages)
		p.outages[i].disk = left.which
		if i+1 < len(p.outages) {
			tt.try(b, p, left.memory, i+1)
			continue
		}
		tt.tried(p, b.recover(p, left.memory, tt.signature()))
	}
}

// signature says whether it is this board's turn to sign: tools that are
// strangers take their time, so that only some boards do.
func (tt *torture) signature() bool {
	tt.mu.Lock()
	defer tt.mu.Unlock()
	tt.recovered++
	return tt.recovered%50 == 1
}

// notReached: the run ended well before the event that it was to be cut at.
type notReached struct{ events, commands int }

func (e *notReached) Error() string {
	return fmt.Sprintf("the run was not cut: it ended after %d such events", e.events)
}

// left is what a cut left of a board.
type left struct {
	which string // of the disks
	memory
}

// cut boots a scenario from some state into a cut.
func (b *rig) cut(s *scenario, from memory, o outage) (list []left, err error) {
	if err := b.on(from, s); err != nil {
		return nil, err
	}
	defer b.off()
	disk, err := powercut.NewDisk(b.root, volatile)
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	for i, program := range s.programs {
		at := cut{}
		if i == o.program {
			at = o.at
		}
		if at.kind == kindPKCS11 {
			if err := b.configure(s.counting()); err != nil {
				return nil, err
			}
		}
		h, err := b.run(program, at, disk)
		if err != nil {
			return nil, err
		}
		if at.At > 0 && h.killed() {
			break
		}
		if err := h.failed(); err != nil {
			return nil, fmt.Errorf("before the cut: %w", err)
		}
		if at.At > 0 && at.kind != kindEnd {
			return nil, &notReached{h.events(at.kind), len(h.commands)}
		}
	}
	state, err := b.tpm.Permanent()
	if err != nil {
		return nil, err
	}
	kept, err := disk.Kept()
	if err != nil {
		return nil, err
	}
	hollow, err := disk.Hollow()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for i, image := range []powercut.Image{kept, disk.Strict(), hollow} {
		if digest := image.Digest(); !seen[digest] {
			seen[digest] = true
			list = append(list, left{survivors[i], memory{image, state}})
		}
	}
	if i := slices.IndexFunc(list, func(l left) bool { return l.which == o.disk }); i >= 0 {
		return list[i : i+1], nil
	}
	if o.disk != "" {
		return list[:1], nil // the one that was asked for is the same
	}
	return list, nil
}

// recover switches a board on again, runs its programs, and looks at the end.
func (b *rig) recover(p point, m memory, sign bool) error {
	s := p.scenario
	if err := b.on(m, s); err != nil {
		return err
	}
	defer b.off()
	after, err := b.look()
	if err != nil {
		return err
	}
	if err := b.status(p); err != nil {
		return err
	}
	for _, program := range s.or(s.recovery) {
		h, err := b.run(program, cut{}, nil)
		if err == nil {
			err = h.failed()
		}
		if err != nil {
			return fmt.Errorf("%s after the cut: %w", program, err)
		}
	}
	now, err := b.now()
	if err != nil {
		return err
	}
	chip, err := b.look()
	if err != nil {
		return err
	}
	if s.newKey {
		delete(after.names, tpm.HandleLDevID)
	}
	return errors.Join(chip.keeps(after), b.good(s, chip, now.disk, sign))
}

// status shows a board that is half made: it can always be told, and telling it
// changes nothing. It is looked at where the TPM was cut.
func (b *rig) status(p point) error {
	if len(p.scenario.programs) > 1 || p.outages[0].at.kind != kindTPM {
		return nil
	}
	// The first command after each power-on that needs to know has the TPM note
	// that it was not shut down in order: so it is the second look that is judged.
	var err error
	for range 2 {
		before, nerr := b.now()
		if nerr != nil {
			return nerr
		}
		program, _, _ := strings.Cut(p.scenario.programs[0], " ")
		h, rerr := b.run(program, cut{}, nil, "status")
		if rerr != nil {
			return rerr
		}
		if code := h.status.ExitStatus(); code != 0 && code != 75 {
			return fmt.Errorf("the status after the cut ended with %s:\n%s", ended(h.status), h.output)
		}
		if err = b.unchanged(before, "the status after the cut"); err == nil {
			return nil
		}
	}
	return err
}

// tried notes how a point ended.
func (tt *torture) tried(p point, err error) {
	tt.mu.Lock()
	defer tt.mu.Unlock()
	kind := p.outages[0].at.kind
	if len(p.outages) > 1 {
		kind = "pair"
	}
	key := p.scenario.name + " " + kind
	if tt.rows[key] == nil {
		tt.rows[key] = &row{Scenario: p.scenario.name, Kind: kind}
	}
	r := tt.rows[key]
	r.Points++
	tt.done++
	if tt.done%500 == 0 {
		fmt.Printf("%d points after a cut, %d failed\n", tt.done, len(tt.failures))
	}
	if err == nil {
		r.Converged++
		return
	}
	r.Failed++
	tt.failures = append(tt.failures, p.String())
	tt.said = append(tt.said, fmt.Sprintf("%s%s\n%v\nagain: go test -tags %s ./cmd -run '^TestTorture$' -torture.only '%s'", p, p.event(), err, buildTags, p))
	fmt.Printf("failed: %s\n", p)
}

// event is what the cut met, as the golden run had it.
func (p point) event() string {
	o := p.outages[0]
	h, i := p.scenario.golden.runs[o.program], o.at.At-1
	switch {
	case o.at.kind == kindTPM && i < len(h.commands):
		return fmt.Sprintf(" (%v)", h.commands[i])
	case o.at.kind == kindFile && i < len(h.files):
		return fmt.Sprintf(" (%v)", h.files[i])
	case o.at.kind == kindPKCS11 && i < len(h.calls):
		return fmt.Sprintf(" (%s)", h.calls[i])
	}
	return ""
}

// report prints the table and writes the report.
func (tt *torture) report(seed uint64, took time.Duration) {
	result := struct {
		Seed      uint64   `json:"seed"`
		Points    int      `json:"points"`
		Converged int      `json:"converged"`
		Failed    int      `json:"failed"`
		Seconds   float64  `json:"seconds"`
		CPU       float64  `json:"cpu_seconds"` // of all processes
		Rows      []*row   `json:"rows"`
		Failures  []string `json:"failures"`
	}{Seed: seed, Seconds: took.Round(time.Second).Seconds(), CPU: cpu().Seconds(), Failures: tt.failures}
	fmt.Printf("%-20s %-8s %7s %10s %7s\n", "program/method", "kind", "points", "converged", "failed")
	for _, s := range tt.scenarios {
		for _, kind := range append(slices.Clone(everyKind), "pair") {
			r := tt.rows[s.name+" "+kind]
			if r == nil {
				continue
			}
			fmt.Printf("%-20s %-8s %7d %10d %7d\n", r.Scenario, r.Kind, r.Points, r.Converged, r.Failed)
			result.Rows = append(result.Rows, r)
			result.Points += r.Points
			result.Converged += r.Converged
			result.Failed += r.Failed
		}
	}
	fmt.Printf("%-20s %-8s %7d %10d %7d   seed %d, %v, %v of CPU\n", "all", "", result.Points, result.Converged, result.Failed, seed, took.Round(time.Second), cpu())
	for _, why := range tt.said {
		tt.t.Error(why)
	}
	if *tortureReport == "" {
		return
	}
	data, err := json.MarshalIndent(result, "", "  ")
	if err == nil {
		err = os.WriteFile(*tortureReport, append(data, '\n'), 0o644)
	}
	if err != nil {
		tt.t.Error(err)
	}
}

// cpu is the time that this process and those that it has waited for have
// used: it says more than the clock on a machine that others use as well.
func cpu() (sum time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var usage syscall.Rusage
		if syscall.Getrusage(who, &usage) == nil {
			sum += time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
		}
	}
	return sum.Round(time.Second)
}
