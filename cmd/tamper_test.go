package cmd

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	crand "crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/bus"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/fault"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/pki"
	tpmkit "github.com/tpm2cloud/tpm2cloud/pkg/testkit/tpm"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

var (
	tamperEvery = flag.Int("tamper", 20, "of all lies of the bus, every which one is told; 1: all of them")
	tamperSeed  = flag.Uint64("tamper-seed", 1, "where the bits are that are flipped")
)

// A bus that lies: one answer of a run is changed, each in many ways. The run
// ends in an error, or well with the right identity; it never panics and never
// gets a certificate for a key that is not in this TPM. A run on an honest bus
// afterwards ends as if nothing had been.
func TestTamper(t *testing.T) {
	t.Parallel()
	vendor := tpmkit.NewVendor(t)
	manufactured := func() *tpmkit.Software {
		s := tpmkit.Start(t)
		device := s.Open(t)
		// A P-256 EK, because it is made a hundred times as quickly.
		tpmkit.PutNV(t, device, tpmkit.CertificateECC, vendor.Certify(t, tpmkit.EK(t, device, tpm2.ECCEKTemplate)))
		return s
	}
	factory := manufactured()
	factory.Cut()
	// A whole device of the same vendor, whose answers are all valid.
	stranger := manufactured()
	twin := newBoard(t, stranger, vendor)
	for _, p := range []program{idevidSteps, ldevidSteps} {
		if err := twin.run(t, p, &fault.Cutter{}); err != nil {
			t.Fatal(err)
		}
	}
	l := newLies(t, stranger)

	t.Run("idevid", func(t *testing.T) {
		t.Parallel()
		l.all(t, func(t *testing.T) *board { return newBoard(t, factory.Fork(t), vendor) }, idevidSteps, end{keys: 2, indices: 2, parallel: true})
	})

	made := newBoard(t, factory.Fork(t), vendor)
	if err := made.run(t, idevidSteps, &fault.Cutter{}); err != nil {
		t.Fatal(err)
	}
	made.tpm.Cut()
	next := func(t *testing.T) *board {
		b := newBoard(t, made.tpm.Fork(t), vendor)
		if err := os.CopyFS(filepath.Join(b.root, "var/lib/tpm2cloud"), os.DirFS(filepath.Join(made.root, "var/lib/tpm2cloud"))); err != nil {
			t.Fatal(err)
		}
		return b
	}
	want := end{keys: 4, indices: 2}
	t.Run("ldevid", func(t *testing.T) { l.all(t, next, ldevidSteps, want) })
	t.Run("ldevid with its library", func(t *testing.T) {
		t.Parallel()
		l.outside(t, next, want)
	})
}

// lies are what a bus can say.
type lies struct {
	list     []lie // about what an answer says
	codes    []lie // that the answer is a return code
	stranger transport.TPM
	mu       sync.Mutex // of the stranger, and of the dice
	dice     *rand.Rand
}

// lie is one way to change an answer.
type lie struct {
	name string
	// tell gives the changed answer, or nil where there is nothing to change.
	tell func(b *board, command, answer []byte) []byte
}

func newLies(t *testing.T, stranger *tpmkit.Software) *lies {
	l := &lies{stranger: stranger.Open(t), dice: rand.New(rand.NewPCG(*tamperSeed, 0))}
	add := func(name string, tell func(b *board, command, answer []byte) []byte) {
		l.list = append(l.list, lie{name, tell})
	}
	t.Logf("seed %d", *tamperSeed)

	add("answered by another TPM", l.fromStranger)
	add("a key of software", func(b *board, command, answer []byte) []byte { return forge(b, command, answer, true) })
	add("a key of software under another parent", func(b *board, command, answer []byte) []byte { return forge(b, command, answer, false) })
	add("an index that looks locked", func(_ *board, c, a []byte) []byte {
		return index(c, a, func(p *tpm2.TPMSNVPublic) { p.Attributes.WriteLocked = true })
	})
	add("an index that looks unwritten", func(_ *board, c, a []byte) []byte {
		return index(c, a, func(p *tpm2.TPMSNVPublic) { p.Attributes.Written = false })
	})
	add("a longer index", func(_ *board, c, a []byte) []byte { return index(c, a, func(p *tpm2.TPMSNVPublic) { p.DataSize++ }) })
	add("another index", func(_ *board, c, a []byte) []byte { return index(c, a, func(p *tpm2.TPMSNVPublic) { p.NVIndex++ }) })
	add("a name with another digest", func(_ *board, c, a []byte) []byte {
		return name(c, a, func(n []byte) []byte { n[len(n)-1] ^= 1; return n })
	})
	add("no name", func(_ *board, c, a []byte) []byte { return name(c, a, func([]byte) []byte { return nil }) })

	for what, at := range map[string]func(area []byte) int{
		"HMAC":       func(area []byte) int { return len(area) - 1 },
		"nonce":      func([]byte) int { return 2 },
		"attributes": func(area []byte) int { return 2 + int(binary.BigEndian.Uint16(area)) },
	} {
		add("a session's "+what+" changed", func(_ *board, c, a []byte) []byte {
			area := sessionArea(c, a)
			if area == nil {
				return nil
			}
			a[len(a)-len(area)+at(area)] ^= 1
			return a
		})
	}
	add("sessions left out", func(_ *board, c, a []byte) []byte {
		if area := sessionArea(c, a); area != nil {
			return sized(a[:len(a)-len(area)])
		}
		return nil
	})

	for _, n := range []int{0, 1, 9, 10, 11, 14} {
		add(fmt.Sprintf("cut to %d bytes", n), func(_ *board, _, a []byte) []byte { return shorter(a, n) })
		add(fmt.Sprintf("cut to %d bytes, and says so", n), func(_ *board, _, a []byte) []byte { return sized(shorter(a, n)) })
	}
	for what, n := range map[string]func([]byte) int{
		"half":         func(a []byte) int { return len(a) / 2 },
		"all but one":  func(a []byte) int { return len(a) - 1 },
		"all but some": func(a []byte) int { return len(a) - 33 },
	} {
		add("cut to "+what, func(_ *board, _, a []byte) []byte { return shorter(a, n(a)) })
		add("cut to "+what+", and says so", func(_ *board, _, a []byte) []byte { return sized(shorter(a, n(a))) })
	}
	for what, by := range map[string]int{"smaller": -1, "bigger": 1, "much bigger": 1 << 30} {
		add("the size is "+what, func(_ *board, _, a []byte) []byte {
			binary.BigEndian.PutUint32(a[2:], uint32(len(a)+by))
			return a
		})
		add("the first field is "+what, func(_ *board, _, a []byte) []byte {
			if len(a) < 12 {
				return nil
			}
			binary.BigEndian.PutUint16(a[10:], uint16(int(binary.BigEndian.Uint16(a[10:]))+by))
			return a
		})
	}
	add("more than it says", func(_ *board, _, a []byte) []byte { return append(a, make([]byte, 7)...) })
	add("more, and says so", func(_ *board, _, a []byte) []byte { return sized(append(a, make([]byte, 7)...)) })
	add("nothing but zeros", func(_ *board, _, a []byte) []byte { return make([]byte, len(a)) })
	add("success, and nothing else", func(_ *board, _, a []byte) []byte { return fault.Failure(tpm2.TPMRCSuccess) })

	for _, rc := range returnCodes() {
		l.codes = append(l.codes, lie{fmt.Sprintf("the return code %#03x", uint32(rc)), func(*board, []byte, []byte) []byte { return fault.Failure(rc) }})
	}
	for i := range 16 {
		add(fmt.Sprintf("bits flipped, %d", i), func(_ *board, _, a []byte) []byte {
			l.mu.Lock()
			defer l.mu.Unlock()
			for range 1 + l.dice.IntN(4) {
				a[l.dice.IntN(len(a))] ^= 1 << l.dice.IntN(8)
			}
			return a
		})
	}
	return l
}

// returnCodes are those that go-tpm has a name for, and those of format one for
// a handle, a parameter and a session as well (Part 2, clause 6.6).
func returnCodes() []tpm2.TPMRC {
	var list []tpm2.TPMRC
	for n := range tpm2.TPMRC(0x1000) {
		if strings.HasPrefix(n.Error(), "TPM_RC_") && n&0x080 == 0 {
			list = append(list, n)
		}
	}
	for n := range tpm2.TPMRC(0x40) {
		format1 := 0x080 | n
		if !strings.HasPrefix(format1.Error(), "TPM_RC_") {
			continue
		}
		list = append(list, format1, format1|0x100, format1|0x200, format1|0x140, format1|0x240, format1|0xF40, format1|0x900, format1|0xA00)
	}
	return list
}

// all tells every lie about every answer of a run, or a part of them.
func (l *lies) all(t *testing.T, fresh func(*testing.T) *board, p program, want end) {
	var answers []tpm2.TPMCC
	b := fresh(t)
	err := b.runOn(t, p, fault.Tap{TPM: b.tpm.Open(t), Answer: func(code tpm2.TPMCC, _, answer []byte) []byte {
		answers = append(answers, code)
		return answer
	}}, false)
	if err != nil {
		t.Fatal(err)
	}
	b.converged(t, p, want)
	b.tpm.Cut()

	var mu sync.Mutex
	number, told, ended := 0, 0, map[string]int{}
	for at, lie := range l.some(len(answers), *tamperEvery) {
		// A socket's path is short, and has the name of the test in it.
		number++
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			t.Logf("answer %d, to command %#x: %s", at+1, uint32(answers[at]), lie.name)
			if want.parallel {
				t.Parallel()
			}
			b := fresh(t)
			defer b.tpm.Cut()
			if how := b.tampered(t, p, at, lie, want); how != "" {
				mu.Lock()
				defer mu.Unlock()
				told++
				ended[how]++
			}
		})
	}
	t.Cleanup(func() { t.Logf("%d answers, %d lies about them: %v", len(answers), told, ended) })
}

// some are lies to be told, each about one of n answers: of all that there are
// one in so many. There are five times as many return codes as other lies, and
// most are the same to us; so a fifth of them is taken, unless all are.
func (l *lies) some(n, every int) iter.Seq2[int, lie] {
	return func(yield func(int, lie) bool) {
		number := 0
		for _, kind := range []struct {
			list  []lie
			every int
		}{{l.list, every}, {l.codes, max(1, 5*(every-1))}} {
			for at := range n {
				for _, lie := range kind.list {
					if number++; number%kind.every == 0 && !yield(at, lie) {
						return
					}
				}
			}
		}
	}
}

// outside tells lies to tpm2cloud-ldevid in a process of its own, in which the
// PKCS#11 library is lied to as well: that is C.
func (l *lies) outside(t *testing.T, fresh func(*testing.T) *board, want end) {
	honest := fresh(t)
	answers := honest.behind(t, nil)
	if code, said := honest.binary(t); code != 0 {
		t.Fatalf("exit code %d: %s", code, said)
	}
	honest.tpm.Cut()
	sent := len(answers.Log())
	var mu sync.Mutex
	number, told, ended := 0, 0, map[string]int{}
	// A process each: a third of them.
	for at, lie := range l.some(sent, max(1, 3*(*tamperEvery-1))) {
		number++
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			t.Parallel()
			t.Logf("answer %d: %s", at+1, lie.name)
			b := fresh(t)
			defer b.tpm.Cut()
			n, lied := 0, false
			b.behind(t, func(e bus.Exchange) []byte {
				if n++; n == at+1 {
					// A lie without a header has no end that could be found on a socket.
					if changed := lie.tell(b, e.Command, bytes.Clone(e.Answer)); len(changed) > 0 && !bytes.Equal(changed, e.Answer) {
						lied = true
						return changed
					}
				}
				return e.Answer
			})
			code, said := b.binary(t)
			if !lied {
				return
			}
			t.Logf("exit code %d: %s", code, said)
			if strings.Contains(said, "panic:") || strings.Contains(said, "goroutine ") || code == int(step.Software) {
				t.Errorf("a lie is no defect of ours")
			}
			b.afterwards(t, ldevidSteps, want, func() error { return b.runBinary(t) })
			mu.Lock()
			defer mu.Unlock()
			told++
			ended[fmt.Sprintf("with exit code %d", code)]++
		})
	}
	t.Cleanup(func() { t.Logf("%d answers, %d lies about them: %v", sent, told, ended) })
}

// A bus on which somebody sits who has a key of his own, shows it in the place
// of the IDevID, and signs with it: what he says fits together. The key is not
// the one that the EK has vouched for, and no certificate is asked for it.
func TestFalseKey(t *testing.T) {
	t.Parallel()
	vendor := tpmkit.NewVendor(t)
	s := tpmkit.Start(t)
	s.Manufacture(t, vendor)
	b := newBoard(t, s, vendor)
	honest := s.Open(t)
	made := false
	sit := fault.Tap{TPM: honest, Answer: func(code tpm2.TPMCC, command, answer []byte) []byte {
		switch made = made || code == tpm2.TPMCCCreateLoaded; {
		case !made:
		case code == tpm2.TPMCCReadPublic && binary.BigEndian.Uint32(command[10:]) == uint32(tpm.HandleIDevID):
			if forged := forge(b, command, answer, true); forged != nil {
				return forged
			}
		case code == tpm2.TPMCCSign:
			return signed(t, command)
		}
		return answer
	}}
	refuse := func(when string) {
		t.Helper()
		err := b.runOn(t, idevidSteps, sit, true)
		if step.ClassOf(err) != step.Refused || !strings.Contains(fmt.Sprint(err), "cannot trust the key") {
			t.Errorf("%s: %v", when, err)
		}
		tidy(t, honest)
		if keys := b.certified(t); len(keys) > 0 {
			t.Errorf("%s: a CA was asked for a certificate: %v", when, keys)
		}
	}
	refuse("of a key that this run has made")
	refuse("of a key that an earlier run has made")
	// As one that the factory has made, or an image before this one.
	if err := os.Remove(filepath.Join(b.root, "var/lib/tpm2cloud/idevid/key.json")); err != nil {
		t.Fatal(err)
	}
	refuse("of a key that is adopted")
	if err := b.run(t, idevidSteps, &fault.Cutter{}); err != nil {
		t.Fatal(err)
	}
	b.converged(t, idevidSteps, end{keys: 2, indices: 2})
}

// A bus that says what another TPM would say, to a board that sets the state of
// others aside: that is done once the other TPM has proven itself, which this bus
// cannot.
func TestForeignTPM(t *testing.T) {
	t.Parallel()
	vendor := tpmkit.NewVendor(t)
	var boards [2]*board
	for i := range boards {
		s := tpmkit.Start(t)
		s.Manufacture(t, vendor)
		boards[i] = newBoard(t, s, vendor)
		if err := boards[i].run(t, idevidSteps, &fault.Cutter{}); err != nil {
			t.Fatal(err)
		}
	}
	b, l := boards[0], &lies{stranger: boards[1].tpm.Open(t)}
	b.cfg.Run.OnForeignState = config.ForeignDiscard
	err := b.runOn(t, idevidSteps, fault.Tap{TPM: b.tpm.Open(t), Answer: func(_ tpm2.TPMCC, command, answer []byte) []byte {
		if other := l.fromStranger(b, command, answer); other != nil {
			return other
		}
		return answer
	}}, true)
	if err == nil || !strings.Contains(err.Error(), "state: ") {
		t.Errorf("another TPM was believed: %v", err)
	}
	aside, err := filepath.Glob(filepath.Join(b.root, "var/lib/tpm2cloud/*/foreign-*"))
	if err != nil || len(aside) > 0 {
		t.Errorf("set aside: %v, %v", aside, err)
	}
	b.converged(t, idevidSteps, end{keys: 2, indices: 2})
}

// signed is an answer to TPM2_Sign by the liar's key.
func signed(t *testing.T, command []byte) []byte {
	_, parameters, err := bus.Exchange{Command: command}.Split()
	if err != nil {
		t.Fatal(err)
	}
	r, s, err := ecdsa.Sign(crand.Reader, softwareECC(), parameters[2:2+int(binary.BigEndian.Uint16(parameters))])
	if err != nil {
		t.Fatal(err)
	}
	signature := tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))}, SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))}})})
	answer := make([]byte, 10, 200)
	binary.BigEndian.PutUint16(answer, uint16(tpm2.TPMSTSessions))
	answer = append(binary.BigEndian.AppendUint32(answer, uint32(len(signature))), signature...)
	return sized(append(answer, 0, 0, 1, 0, 0)) // the empty password's
}

// What the PKCS#11 library was told wrong of the storage key it keeps in its
// store. As long as there is no token in it, the store is made anew.
func TestStoreSpoiled(t *testing.T) {
	t.Parallel()
	vendor := tpmkit.NewVendor(t)
	s := tpmkit.Start(t)
	s.Manufacture(t, vendor)
	b := newBoard(t, s, vendor)
	if err := b.run(t, idevidSteps, &fault.Cutter{}); err != nil {
		t.Fatal(err)
	}
	for what, tell := range map[string]func(b *board, command, answer []byte) []byte{
		"a bit changed": func(_ *board, c, a []byte) []byte { return name(c, a, func(n []byte) []byte { n[9] ^= 1; return n }) },
		"another key":   func(b *board, c, a []byte) []byte { return forge(b, c, a, true) },
	} {
		library, lied := false, false
		b.behind(t, func(e bus.Exchange) []byte {
			library = library || e.Code() == tpm2.TPMCCTestParms
			if changed := tell(b, e.Command, e.Answer); library && !lied && e.Code() == tpm2.TPMCCReadPublic {
				lied = true
				return changed
			}
			return e.Answer
		})
		if code, said := b.binary(t); code == 0 || !lied {
			t.Fatalf("%s: exit code %d: %s", what, code, said)
		}
	}
	b.afterwards(t, ldevidSteps, end{keys: 4, indices: 2}, func() error { return b.runBinary(t) })
}

// behind puts the board's programs behind a proxy.
func (b *board) behind(t *testing.T, answer func(bus.Exchange) []byte) *bus.Proxy {
	t.Helper()
	proxy := bus.Listen(t, b.tpm.Socket, answer)
	dropIns := filepath.Join(b.root, "etc/tpm2cloud/tpm2cloud.toml.d")
	err := errors.Join(
		os.Remove(filepath.Join(b.root, "t")),
		os.Symlink(proxy.Dir, filepath.Join(b.root, "t")),
		os.MkdirAll(dropIns, 0o755),
		os.WriteFile(filepath.Join(dropIns, "bus.toml"), []byte("[tpm]\ndevice = \"unix:/t/s\"\n[run]\nbudget = \"20s\"\n"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	return proxy
}

// binary runs tpm2cloud-ldevid itself.
func (b *board) binary(t *testing.T) (code int, said string) {
	t.Helper()
	var output bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, filepath.Join(binaries, "tpm2cloud-ldevid"), "--root", b.root)
	c.Stdout, c.Stderr = &output, &output
	if err := c.Run(); ctx.Err() != nil || err != nil && c.ProcessState == nil {
		t.Fatalf("%v: %s", err, output.String())
	}
	return c.ProcessState.ExitCode(), output.String()
}

func (b *board) runBinary(t *testing.T) error {
	t.Helper()
	if code, said := b.binary(t); code != 0 {
		return fmt.Errorf("exit code %d: %s", code, said)
	}
	return nil
}

// tampered runs a program on a bus that tells one lie, and looks at what became
// of the device. It says how that run ended, or nothing if the lie did not fit.
func (b *board) tampered(t *testing.T, p program, at int, lie lie, want end) string {
	honest := b.tpm.Open(t)
	n, told := 0, false
	liar := fault.Tap{TPM: honest, Answer: func(_ tpm2.TPMCC, command, answer []byte) []byte {
		if n++; n == at+1 {
			if changed := lie.tell(b, command, bytes.Clone(answer)); changed != nil && !bytes.Equal(changed, answer) {
				told = true
				return changed
			}
		}
		return answer
	}}
	err := b.runOn(t, p, liar, false)
	if !told {
		return ""
	}
	how := "well"
	if err != nil {
		how = fmt.Sprintf("in error %d", step.ClassOf(err))
		if step.ClassOf(err) == step.Software {
			t.Errorf("a lie is no defect of ours: %v", err)
		}
	}
	t.Logf("it ended %s: %v", how, err)
	b.afterwards(t, p, want, func() error { return b.run(t, p, &fault.Cutter{}) })
	return how
}

// afterwards looks at what a run on a bus that lies has left.
// A run on an honest bus must put it right.
func (b *board) afterwards(t *testing.T, p program, want end, run func() error) {
	t.Helper()
	keys := b.certified(t)
	// What the kernel does when a program ends.
	tidy(t, b.tpm.Open(t))
	if err := run(); err != nil {
		t.Fatalf("the honest run after it: %v", err)
	}
	b.converged(t, p, want)
	for file, key := range keys {
		if !b.holds(t, key) {
			t.Errorf("%s was for a key that is not in this TPM", file)
		}
	}
}

// tidy flushes what a program has left in the TPM.
func tidy(t *testing.T, device transport.TPM) {
	t.Helper()
	for _, first := range []uint32{0x80000000, 0x02000000} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(device)
		if err != nil {
			t.Fatal(err)
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			t.Fatal(err)
		}
		for _, handle := range list.Handle {
			if _, err := (tpm2.FlushContext{FlushHandle: handle}).Execute(device); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// certified are the keys that something was asked of a CA for: in the requests
// and certificates on the disk.
func (b *board) certified(t *testing.T) map[string]crypto.PublicKey {
	t.Helper()
	keys := map[string]crypto.PublicKey{}
	for _, identity := range []string{"idevid", "ldevid"} {
		dir := filepath.Join(b.root, "var/lib/tpm2cloud", identity)
		if data, err := os.ReadFile(filepath.Join(dir, "request.csr")); err == nil {
			csr, err := x509.ParseCertificateRequest(data)
			if err != nil {
				t.Fatal(err)
			}
			keys[identity+"/request.csr"] = csr.PublicKey
		} else if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "certificate.pem")); err == nil {
			block, _ := pem.Decode(data)
			leaf, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			keys[identity+"/certificate.pem"] = leaf.PublicKey
		} else if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return keys
}

// holds says whether a key is one of the device's identities.
func (b *board) holds(t *testing.T, key crypto.PublicKey) bool {
	t.Helper()
	honest := tpm.New(b.tpm.Open(t), tpm.Secrets{})
	for _, handle := range []tpm2.TPMHandle{tpm.HandleIDevID, tpm.HandleLDevID} {
		if k, err := honest.ReadPublic(handle); err == nil {
			if public, err := k.PublicKey(); err == nil && devid.SameKey(public, key) {
				return true
			}
		}
	}
	return false
}

// fromStranger is what another TPM answers, where it can be asked.
func (l *lies) fromStranger(_ *board, command, _ []byte) []byte {
	switch fault.Code(command) {
	case tpm2.TPMCCReadPublic, tpm2.TPMCCNVReadPublic, tpm2.TPMCCNVRead, tpm2.TPMCCGetCapability:
		l.mu.Lock()
		defer l.mu.Unlock()
		answer, err := l.stranger.Send(command)
		if err != nil {
			return nil
		}
		return answer
	}
	return nil
}

// forge puts a key that is not in any TPM in the place of the one that an answer
// is about, with its right name, and with the right qualified name where whole
// is true.
func forge(b *board, command, answer []byte, whole bool) []byte {
	if !success(answer) {
		return nil
	}
	r := parse(command, answer)
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](r.public())
	if err != nil {
		return nil
	}
	switch area.Type {
	case tpm2.TPMAlgECC:
		key := softwareECC()
		area.Unique = tpm2.NewTPMUPublicID(area.Type, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: key.X.FillBytes(make([]byte, 32))}, Y: tpm2.TPM2BECCParameter{Buffer: key.Y.FillBytes(make([]byte, 32))}})
	case tpm2.TPMAlgRSA:
		area.Unique = tpm2.NewTPMUPublicID(area.Type, &tpm2.TPM2BPublicKeyRSA{Buffer: softwareRSA().N.Bytes()})
	default:
		return nil
	}
	own, err := tpm2.ObjectName(area)
	if err != nil {
		return nil
	}
	r.setPublic(tpm2.Marshal(area))
	r.setName(own.Buffer)
	if fault.Code(command) == tpm2.TPMCCReadPublic && whole {
		r.fields[2] = digestName(b.parentName(command), own.Buffer)
	}
	return r.bytes()
}

// The keys that a liar has.
var (
	softwareECC = sync.OnceValue(func() *ecdsa.PrivateKey { return pki.NewKey(&testing.T{}) })
	softwareRSA = sync.OnceValue(func() *rsa.PrivateKey { return pki.NewRSAKey(&testing.T{}) })
)

// parentName is the qualified name of the parent of the key that ReadPublic
// asks for, which anybody can work out.
func (b *board) parentName(command []byte) []byte {
	var hierarchy tpm2.TPMHandle
	var parents []tpm2.TPMHandle
	switch tpm2.TPMHandle(binary.BigEndian.Uint32(command[10:])) {
	case tpm.HandleIDevID:
		hierarchy, parents = tpm2.TPMRHEndorsement, []tpm2.TPMHandle{tpm.HandleEKECC, tpm.HandleEKRSA}
	case tpm.HandleLDevID:
		hierarchy, parents = tpm2.TPMRHOwner, []tpm2.TPMHandle{tpm.HandleSRK}
	case tpm.HandleSRK:
		return tpm2.HandleName(tpm2.TPMRHOwner).Buffer
	default:
		return tpm2.HandleName(tpm2.TPMRHEndorsement).Buffer
	}
	device, err := linuxudstpm.Open(b.tpm.Socket)
	if err != nil {
		return nil
	}
	defer device.Close()
	for _, parent := range parents {
		if rsp, err := (tpm2.ReadPublic{ObjectHandle: parent}).Execute(device); err == nil {
			return digestName(tpm2.HandleName(hierarchy).Buffer, rsp.Name.Buffer)
		}
	}
	return nil
}

// digestName is the qualified name of a key (Part 1, clause 16).
func digestName(parent, own []byte) []byte {
	sum := sha256.Sum256(append(bytes.Clone(parent), own...))
	return append([]byte{0x00, 0x0b}, sum[:]...)
}

// response is an answer taken apart: what comes first, sized fields, and the
// rest.
type response struct {
	code     tpm2.TPMCC
	sessions bool
	handle   []byte
	fields   [][]byte
	ticket   []byte // of CreatePrimary, between the last two fields
	area     []byte // of the sessions
}

// parse takes an answer to one of our commands apart that was a success.
func parse(command, answer []byte) *response {
	r := &response{code: fault.Code(command), sessions: binary.BigEndian.Uint16(answer) == uint16(tpm2.TPMSTSessions)}
	rest := answer[10:]
	switch r.code {
	case tpm2.TPMCCCreatePrimary, tpm2.TPMCCCreateLoaded, tpm2.TPMCCLoad, tpm2.TPMCCStartAuthSession:
		r.handle, rest = rest[:4], rest[4:]
	}
	if r.sessions {
		n := binary.BigEndian.Uint32(rest)
		rest, r.area = rest[4:4+n], rest[4+n:]
	}
	for len(rest) >= 2 {
		if r.code == tpm2.TPMCCCreatePrimary && len(r.fields) == 3 {
			n := 6 + 2 + int(binary.BigEndian.Uint16(rest[6:]))
			r.ticket, rest = rest[:n], rest[n:]
		}
		n := int(binary.BigEndian.Uint16(rest))
		if 2+n > len(rest) {
			break // no sized field: nobody asks for it
		}
		r.fields, rest = append(r.fields, rest[2:2+n]), rest[2+n:]
	}
	return r
}

func (r *response) bytes() []byte {
	answer := make([]byte, 10)
	binary.BigEndian.PutUint16(answer, uint16(tpm2.TPMSTNoSessions))
	answer = append(answer, r.handle...)
	var fields []byte
	for i, f := range r.fields {
		if i == 3 {
			fields = append(fields, r.ticket...)
		}
		fields = append(binary.BigEndian.AppendUint16(fields, uint16(len(f))), f...)
	}
	if r.sessions {
		binary.BigEndian.PutUint16(answer, uint16(tpm2.TPMSTSessions))
		answer = binary.BigEndian.AppendUint32(answer, uint32(len(fields)))
	}
	return sized(append(append(answer, fields...), r.area...))
}

// Where the public area and the name are among the fields, or -1.
func (r *response) places() (public, name int) {
	switch r.code {
	case tpm2.TPMCCReadPublic, tpm2.TPMCCNVReadPublic:
		return 0, 1
	case tpm2.TPMCCCreatePrimary:
		return 0, 3
	case tpm2.TPMCCCreateLoaded:
		return 1, 2
	case tpm2.TPMCCCreate:
		return 1, -1
	case tpm2.TPMCCLoad:
		return -1, 0
	}
	return -1, -1
}

func (r *response) public() []byte {
	if i, _ := r.places(); i >= 0 {
		return r.fields[i]
	}
	return nil
}

func (r *response) setPublic(area []byte) {
	i, _ := r.places()
	r.fields[i] = area
}

func (r *response) setName(name []byte) {
	if _, i := r.places(); i >= 0 {
		r.fields[i] = name
	}
}

// index changes the public area of an NV index, and its name with it.
func index(command, answer []byte, change func(*tpm2.TPMSNVPublic)) []byte {
	if fault.Code(command) != tpm2.TPMCCNVReadPublic || !success(answer) {
		return nil
	}
	r := parse(command, answer)
	area, err := tpm2.Unmarshal[tpm2.TPMSNVPublic](r.public())
	if err != nil {
		return nil
	}
	change(area)
	name, err := tpm2.NVName(area)
	if err != nil {
		return nil
	}
	r.setPublic(tpm2.Marshal(area))
	r.setName(name.Buffer)
	return r.bytes()
}

// name changes the name in an answer.
func name(command, answer []byte, change func([]byte) []byte) []byte {
	if !success(answer) {
		return nil
	}
	r := parse(command, answer)
	_, i := r.places()
	if i < 0 {
		return nil
	}
	r.fields[i] = change(bytes.Clone(r.fields[i]))
	return r.bytes()
}

// sessionArea is the end of an answer in which the sessions are, or nil.
func sessionArea(command, answer []byte) []byte {
	if !success(answer) || binary.BigEndian.Uint16(answer) != uint16(tpm2.TPMSTSessions) {
		return nil
	}
	return parse(command, answer).area
}

func success(answer []byte) bool { return binary.BigEndian.Uint32(answer[6:]) == 0 }

func shorter(answer []byte, n int) []byte { return answer[:max(0, min(n, len(answer)-1))] }

// sized has an answer say the size that it has.
func sized(answer []byte) []byte {
	if len(answer) >= 10 {
		binary.BigEndian.PutUint32(answer[2:], uint32(len(answer)))
	}
	return answer
}
