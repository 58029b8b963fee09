package main

import (
	"fmt"
	"slices"
	"time"
)

const (
	rate   = 100 // certificates a second
	each   = time.Second / rate
	outage = time.Hour
	// patience is how long a device waits for an answer (pkg/est).
	patience = 30 * time.Second
	// never is the end of a simulation that comes to none: more than twice what a
	// million devices need at best. A CA that collapses shows it sooner.
	never    = 12 * time.Hour
	collapse = time.Hour
)

// model is a CA and what must become of a fleet before it.
type model struct {
	name string
	ca   func() ca
	from time.Duration // when the CA begins: the ideal counts from there
	end  time.Duration // of the simulation
	targets
}

// targets are the bounds that apply; 0 is none.
type targets struct {
	ratio      float64 // time, of the ideal
	requests   int     // of one device, in a fleet of up to 10,000
	share      float64 // of the fleet in one second
	peakToMean float64 // in a fleet of up to 10,000
}

// small is the size of a fleet for which all targets apply. A million devices
// that are told "30 s" by a CA that needs five hours must ask more often. Between
// small and large, turns come while no run waits for them, and are missed until
// the timer comes: that much more time is allowed.
const (
	small = 10_000
	large = 1_000_000
)

func limited(after func(*fenced) time.Duration, refusal time.Duration) *fenced {
	return &fenced{worker: worker{each: each}, longest: time.Second, refusal: refusal, after: after}
}

var models = []model{
	{"503, Retry-After: backlog / rate", func() ca { return limited(estimating, 0) }, 0, never, targets{1.15, 10, 0.1, 5}},
	{"503, Retry-After: 30", func() ca { return limited(constant(30*time.Second), 0) }, 0, never, targets{2, 10, 0.1, 5}},
	{"503, Retry-After: 120", func() ca { return limited(constant(2*time.Minute), 0) }, 0, never, targets{share: 0.1}},
	{"503, no Retry-After", func() ca { return limited(constant(0), 0) }, 0, never, targets{}},
	{"backlog / rate; a refusal takes 1 ms", func() ca { return limited(estimating, time.Millisecond) }, 0, collapse, targets{}},
	{"no limit: answers late, or not at all", func() ca { return &unfenced{worker{each: each}, 4096} }, 0, collapse, targets{}},
	{"an hour down, then backlog / rate", func() ca { return &down{outage, limited(estimating, 0)} }, outage, never, targets{}},
}

// outcome is what became of a fleet, in figures.
type outcome struct {
	Model        string   `json:"model"`
	Devices      int      `json:"devices"`
	Issued       float64  `json:"issued"`        // of all certificates
	Seconds      float64  `json:"seconds"`       // from the CA's beginning until the last certificate
	NineOfTen    int      `json:"nine_of_ten_s"` // the same until nine of ten were issued
	Ratio        float64  `json:"ratio_to_ideal"`
	MeanRequests float64  `json:"mean_requests"`
	MostRequests int      `json:"most_requests"`
	Peak         int      `json:"peak_per_second"`
	PeakShare    float64  `json:"peak_share_of_fleet"`
	PeakToMean   float64  `json:"peak_to_mean"`
	Missed       []string `json:"missed,omitempty"`
	PerSecond    []int    `json:"requests_per_second"`

	end     time.Duration
	targets targets
}

func (o outcome) ideal() float64 { return certificates * float64(o.Devices) / rate }

// powerOn is the time in which all devices ask for the first time, and are
// answered.
const powerOn = 5 // seconds

func (m model) simulate(n int, seed uint64) outcome {
	return m.judge(release(n, m.ca(), device{}, seed, m.end))
}

func (m model) judge(r result) outcome {
	n := len(r.devices)
	o := outcome{Model: m.name, Devices: n, Issued: float64(r.issued) / float64(certificates*n), PerSecond: r.perSecond, end: m.end, targets: m.targets,
		Seconds: (r.last - m.from).Seconds(), NineOfTen: int((r.nineOfTen - m.from).Seconds())}
	o.Ratio = o.Seconds / o.ideal()
	total := 0
	for i := range r.devices {
		total += r.devices[i].requests
		o.MostRequests = max(o.MostRequests, r.devices[i].requests)
	}
	o.MeanRequests = float64(total) / float64(n)
	after := r.perSecond[min(powerOn, len(r.perSecond)):]
	if len(after) > 0 {
		o.Peak = slices.Max(after)
	}
	o.PeakShare = float64(o.Peak) / float64(n)
	sum := 0
	until := after[:min(len(after), max(int(r.nineOfTen.Seconds())-powerOn, 1))]
	for _, count := range until {
		sum += count
	}
	if sum > 0 {
		o.PeakToMean = float64(o.Peak) * float64(len(until)) / float64(sum)
	}
	o.Missed = o.misses()
	return o
}

func (o outcome) misses() (list []string) {
	miss := func(is bool, format string, args ...any) {
		if is {
			list = append(list, fmt.Sprintf("%d devices, %s: ", o.Devices, o.Model)+fmt.Sprintf(format, args...))
		}
	}
	t := o.targets
	miss(o.Issued < 1 && t != targets{}, "not every device has its certificates after %s", o.end)
	allowed := t.ratio
	if o.Devices > small && o.Devices < large {
		allowed += (timerEvery + timerSpread).Seconds() / o.ideal()
	}
	miss(t.ratio > 0 && o.Ratio > allowed, "%.2f of the ideal time, at most %.2f is wanted", o.Ratio, allowed)
	miss(t.share > 0 && o.PeakShare > t.share, "%.1f %% of the fleet ask in one second, at most %.0f %% are wanted", 100*o.PeakShare, 100*t.share)
	if o.Devices <= small {
		miss(t.requests > 0 && o.MostRequests > t.requests, "a device sends %d requests, at most %d are wanted", o.MostRequests, t.requests)
		miss(t.peakToMean > 0 && o.PeakToMean > t.peakToMean, "a peak of %.1f times the mean, at most %.0f is wanted", o.PeakToMean, t.peakToMean)
	}
	return list
}

// took is how long it took, or how far the CA came.
func (o outcome) took() string {
	if o.Issued < 1 {
		return fmt.Sprintf("%.0f %% in %.0f s", 100*o.Issued, o.end.Seconds())
	}
	return fmt.Sprintf("%.0f s, %.2f of the ideal", o.Seconds, o.Ratio)
}

func (o outcome) verdict() string {
	switch {
	case len(o.Missed) > 0:
		return "missed"
	case o.targets == targets{}:
		return "-"
	}
	return "met"
}
