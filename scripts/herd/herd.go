package main

import (
	"container/heap"
	"math/rand/v2"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// What surrounds the policy, as the packages have it.
const (
	budget = 10 * time.Minute // [run] budget of each program
	// tpm2cloud-retry.timer: OnBootSec and OnUnitInactiveSec, RandomizedDelaySec.
	timerEvery  = 15 * time.Minute
	timerSpread = 5 * time.Minute
	// forgotten is how long after its time a note still counts (pkg/identity).
	forgotten = 24 * time.Hour

	certificates = 2 // of a device, the second after the first
)

// device is one of the fleet: two programs, one after the other, each of which
// runs until it has its certificate or gives up, and the timer that starts it
// again.
type device struct {
	waits    step.Waits
	deadline time.Duration // of the run
	timer    time.Duration // when it elapses next
	note     note
	requests int
	have     int  // certificates
	known    bool // the CA has sent it away
	deaf     bool // to Retry-After, as no real one is
	starts   bool // its next event is the start of a run, not a request
}

// note is what a run that gave up leaves to the next.
type note struct {
	until    time.Duration
	failures int
}

// herd is a fleet and its CA.
type herd struct {
	ca     ca
	events queue
	result
}

// result is what became of the fleet.
type result struct {
	devices   []device
	issued    int           // certificates
	last      time.Duration // when the last was
	nineOfTen time.Duration // when nine of ten were
	perSecond []int         // requests
}

// release powers on a fleet of n devices like the one given within one second,
// and goes on until every device has its certificates, or until the end.
func release(n int, c ca, like device, seed uint64, end time.Duration) result {
	random := rand.New(rand.NewPCG(seed, 0))
	draw := func(limit time.Duration) time.Duration { return time.Duration(random.Int64N(int64(limit) + 1)) }
	h := &herd{ca: c, result: result{devices: make([]device, n)}}
	for i := range h.devices {
		d := &h.devices[i]
		*d = like
		boot := draw(time.Second)
		if d.waits.Draw == nil {
			d.waits.Draw = draw
		}
		d.timer = boot + timerEvery + draw(timerSpread)
		d.starts = true
		h.events.push(event{boot, int32(i)})
	}
	for {
		e, ok := h.events.pop()
		if !ok || e.at > end {
			return h.result
		}
		h.step(e.at, e.device)
	}
}

// step is what a device does at its time: it begins a run, or asks.
func (h *herd) step(now time.Duration, id int32) {
	d := &h.devices[id]
	if d.starts {
		d.starts = false
		d.deadline = now + budget
		d.waits = step.Waits{Draw: d.waits.Draw}
		if d.note.until > now {
			h.fail(now, id, step.Setback{Busy: true, Drawn: true, After: d.note.until - now, Failures: d.note.failures})
			return
		}
	}
	h.count(now, d)
	got := h.ca.ask(now, d.known)
	if got.kind == issued {
		h.issue(got.at, id)
		return
	}
	s := step.Setback{Busy: got.kind == busy, After: got.after}
	if d.deaf {
		s.After = 0
	}
	d.known = d.known || s.Busy
	if now-d.note.until < forgotten {
		s.Failures = d.note.failures
	}
	h.fail(got.at, id, s)
}

// fail waits, or gives up until the timer comes again.
func (h *herd) fail(now time.Duration, id int32, s step.Setback) {
	d := &h.devices[id]
	wait, inTime := d.waits.Next(s, d.deadline-now)
	if inTime {
		h.events.push(event{now + wait, id})
		return
	}
	if s.Busy {
		d.note = note{now + wait, s.Failures + d.waits.Failures()}
	}
	for d.timer <= now {
		d.timer += timerEvery + d.waits.Draw(timerSpread)
	}
	d.starts = true
	h.events.push(event{d.timer, id})
}

// issue goes on with the next program.
func (h *herd) issue(now time.Duration, id int32) {
	d := &h.devices[id]
	d.have++
	h.issued++
	if h.last = max(h.last, now); h.issued <= certificates*len(h.devices)*9/10 {
		h.nineOfTen = h.last
	}
	if d.have < certificates {
		d.note, d.known, d.starts = note{}, false, true
		h.events.push(event{now, id})
	}
}

func (h *herd) count(now time.Duration, d *device) {
	d.requests++
	second := int(now / time.Second)
	for len(h.perSecond) <= second {
		h.perSecond = append(h.perSecond, 0)
	}
	h.perSecond[second]++
}

// event is a device's next moment; each has one.
type event struct {
	at     time.Duration
	device int32
}

// queue gives events in their order. Those of a second to come lie unsorted; those of the present one are a heap.
type queue struct {
	next    int // the first second to come
	present heaped
	future  [][]event
}

func (q *queue) push(e event) {
	second := int(e.at / time.Second)
	if second < q.next {
		heap.Push(&q.present, e)
		return
	}
	for len(q.future) <= second {
		q.future = append(q.future, nil)
	}
	q.future[second] = append(q.future[second], e)
}

func (q *queue) pop() (event, bool) {
	for len(q.present) == 0 {
		if q.next == len(q.future) {
			return event{}, false
		}
		q.present, q.future[q.next] = q.future[q.next], nil
		q.next++
		heap.Init(&q.present)
	}
	return heap.Pop(&q.present).(event), true
}

// heaped is a [heap.Interface] with the earliest event on top.
type heaped []event

func (h heaped) Len() int      { return len(h) }
func (h heaped) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h heaped) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].device < h[j].device
}
func (h *heaped) Push(e any) { *h = append(*h, e.(event)) }
func (h *heaped) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	*h = (*h)[:last]
	return e
}
