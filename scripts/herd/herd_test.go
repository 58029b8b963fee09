package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Ten thousand devices meet the targets, whatever the chance.
func TestTargets(t *testing.T) {
	for _, m := range models {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(5) {
				o := m.simulate(small, seed)
				for _, missed := range o.Missed {
					t.Errorf("seed %d: %s", seed, missed)
				}
			}
		})
	}
}

// A policy that is worse misses the targets: the measures see it.
func TestTargetsHaveTeeth(t *testing.T) {
	half := func(limit time.Duration) time.Duration { return limit / 2 }
	estimate, constant := models[0], models[1]
	for name, test := range map[string]struct {
		model model
		like  device
		want  string
	}{
		"no jitter, told the same":       {constant, device{waits: step.Waits{Draw: half}}, "ask in one second"},
		"Retry-After ignored":            {estimate, device{deaf: true}, "of the ideal time"},
		"Retry-After ignored, 30 s":      {constant, device{deaf: true}, "ask in one second"},
		"Retry-After ignored, too often": {constant, device{deaf: true}, "requests"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := test.model.judge(release(small, test.model.ca(), test.like, 1, never))
			if !strings.Contains(strings.Join(o.Missed, "\n"), test.want) {
				t.Errorf("it misses %q: %.2f of the ideal, %d requests, peak %.3f", o.Missed, o.Ratio, o.MostRequests, o.PeakShare)
			}
		})
	}
}

// The same seed is the same simulation, another one another.
func TestSeed(t *testing.T) {
	first, same, other := models[1].simulate(1000, 1), models[1].simulate(1000, 1), models[1].simulate(1000, 2)
	if first.Seconds != same.Seconds || first.MeanRequests != same.MeanRequests {
		t.Errorf("%.3f s and %.3f s with one seed", first.Seconds, same.Seconds)
	}
	if first.Seconds == other.Seconds {
		t.Errorf("%.3f s with two seeds", first.Seconds)
	}
}

// Events come in their order, whatever the order they were put in.
func TestQueue(t *testing.T) {
	var q queue
	random := rand.New(rand.NewPCG(1, 1))
	put := 0
	for range 1000 {
		q.push(event{time.Duration(random.Int64N(int64(time.Minute))), int32(put)})
		put++
	}
	var last event
	for got := 0; ; got++ {
		e, ok := q.pop()
		if !ok {
			if got != put {
				t.Errorf("%d events of %d", got, put)
			}
			return
		}
		if e.at < last.at || e.at == last.at && e.device < last.device {
			t.Fatalf("%v after %v", e, last)
		}
		last = e
		if put < 3000 { // one for now, one for later
			q.push(event{e.at, int32(put)})
			q.push(event{e.at + time.Duration(random.Int64N(int64(time.Minute))), int32(put + 1)})
			put += 2
		}
	}
}

// An enrolment is a step of a real run, before a model of a CA.
type enrolment struct {
	ca    *sharedCA
	begin time.Time
	have  bool
	known bool
	note  note
	asked int
}

// sharedCA is a CA that devices ask at the same time.
type sharedCA struct {
	sync.Mutex
	ca
	issued []time.Duration // when
}

func (*enrolment) Name() string { return "certificate" }

func (e *enrolment) Observe(context.Context) (step.Observation, error) {
	if e.have {
		return step.Observation{State: step.Present}, nil
	}
	return step.Observation{}, nil
}

func (e *enrolment) now() time.Duration { return time.Since(e.begin) }

// Act is what pkg/identity and pkg/enroll do with an order.
func (e *enrolment) Act(context.Context, step.Observation) error {
	if e.note.until > e.now() {
		return &step.Error{Busy: true, Drawn: true, NotBefore: e.begin.Add(e.note.until), Failures: e.note.failures, Err: errors.New("not yet")}
	}
	e.asked++
	e.ca.Lock()
	got := e.ca.ask(e.now(), e.known)
	if got.kind == issued {
		e.ca.issued = append(e.ca.issued, got.at)
	}
	e.ca.Unlock()
	time.Sleep(got.at - e.now())
	switch got.kind {
	case issued:
		e.have = true
		return nil
	case silence:
		return errors.New("no answer")
	}
	e.known = true
	failed := &step.Error{Busy: true, Failures: e.note.failures, Err: errors.New("503")}
	if got.after > 0 {
		failed.NotBefore = time.Now().Add(got.after)
	}
	return failed
}

func (e *enrolment) Postpone(until time.Time, failures int) error {
	e.note = note{until.Sub(e.begin), failures}
	return nil
}

// The simulation comes to what real runs come to, by the real step.Runner in
// time that is not real: two thousand devices before a CA that is so much slower
// that all times are those of ten thousand, or of a hundred thousand, most of which
// outlast the budget of a run.
func TestRunner(t *testing.T) {
	const devices = 2000
	for _, test := range []struct {
		model
		like int // this many devices
	}{
		{models[0], 10_000}, {models[1], 10_000}, {models[3], 10_000}, {models[6], 10_000},
		{models[0], 100_000}, {models[1], 100_000},
	} {
		m, slower := test.model, time.Duration(test.like/devices)
		t.Run(fmt.Sprintf("%d/%s", test.like, m.name), func(t *testing.T) {
			slow := func() ca {
				c := m.ca()
				switch inner := c.(type) {
				case *fenced:
					inner.each *= slower
				case *down:
					inner.ca.(*fenced).each *= slower
				}
				return c
			}
			want := m.judge(release(devices, slow(), device{}, 1, never))
			var nineOfTen time.Duration
			var requests int
			synctest.Test(t, func(t *testing.T) {
				shared, begin := &sharedCA{ca: slow()}, time.Now()
				asked := make([]int, devices)
				var all sync.WaitGroup
				for i := range devices {
					all.Go(func() { asked[i] = live(t.Context(), shared, begin) })
				}
				all.Wait()
				slices.Sort(shared.issued)
				nineOfTen = shared.issued[certificates*devices*9/10-1]
				for _, n := range asked {
					requests += n
				}
			})
			// Not the last device, whose time is one of chance.
			took, mean := (nineOfTen - m.from).Seconds(), float64(requests)/devices
			t.Logf("runs: %.1f s, %.2f requests; simulation: %d s, %.2f requests", took, mean, want.NineOfTen, want.MeanRequests)
			if math.Abs(took/float64(want.NineOfTen)-1) > 0.1 || math.Abs(mean/want.MeanRequests-1) > 0.03 {
				t.Errorf("nine of ten certificates of %d real runs took %.1f s, and a device %.2f requests; the simulation says %d s and %.2f",
					devices, took, mean, want.NineOfTen, want.MeanRequests)
			}
		})
	}
}

// live is a device from power on until it has its certificates. It returns how
// often it has asked.
func live(ctx context.Context, shared *sharedCA, begin time.Time) (asked int) {
	spread := func(d time.Duration) time.Duration { return time.Duration(rand.Int64N(int64(d))) }
	boot := spread(time.Second)
	time.Sleep(boot)
	timer := begin.Add(boot + timerEvery + spread(timerSpread))
	programs := [certificates]*enrolment{}
	for i := range programs {
		programs[i] = &enrolment{ca: shared, begin: begin}
	}
	for {
		done := true
		for _, p := range programs {
			// A unit that requires one that failed does not start.
			if done = (&step.Runner{Steps: []step.Step{p}, Budget: budget}).Run(ctx) == nil; !done {
				break
			}
		}
		if done {
			for _, p := range programs {
				asked += p.asked
			}
			return asked
		}
		for !timer.After(time.Now()) {
			timer = timer.Add(timerEvery + spread(timerSpread))
		}
		time.Sleep(time.Until(timer))
	}
}

// What a run leaves: plots that are XML, with a panel a model, and the figures.
func TestOutput(t *testing.T) {
	dir := t.TempDir()
	var said bytes.Buffer
	if met, err := run(&said, io.Discard, "10000", 1, dir); err != nil || !met {
		t.Fatalf("met %t, %v\n%s", met, err, &said)
	}
	data, err := os.ReadFile(filepath.Join(dir, "10000.svg"))
	if err != nil {
		t.Fatal(err)
	}
	panels := 0
	for d := xml.NewDecoder(bytes.NewReader(data)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "g" {
			panels++
		}
	}
	if panels != len(models) {
		t.Errorf("%d panels for %d models", panels, len(models))
	}
	if data, err = os.ReadFile(filepath.Join(dir, "herd.json")); err != nil {
		t.Fatal(err)
	}
	var figures struct{ Outcomes []outcome }
	if err := json.Unmarshal(data, &figures); err != nil || len(figures.Outcomes) != len(models) {
		t.Errorf("%d outcomes, %v", len(figures.Outcomes), err)
	}
	if _, err := run(io.Discard, io.Discard, "many", 1, dir); err == nil {
		t.Error("a fleet of many devices")
	}
}
