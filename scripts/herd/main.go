// Command herd simulates what becomes of a CA, and of the devices, when a whole
// fleet is powered on in the same second.
//
//	go run ./scripts/herd [flags]
//
// The device's side is the real one: step.Waits decides each wait, with the
// budget of a run, the timer that starts the next one, and the note of a CA that
// is busy, as the units have them. A test holds the simulation against the real
// step.Runner. The CA's side are models (ca.go). Their assumptions:
//
//   - A certificate takes the CA 10 ms: it issues 100 a second, never more. A
//     device wants two, the second as soon as it has the first. The ideal is
//     two certificates a device over 100 a second.
//   - Every device is powered on within one second and asks at once. Real boards
//     differ by seconds in booting and in making their keys: this is worse.
//   - One try is one request. A real one is a TLS handshake, GET /cacerts and
//     POST /simpleenroll in one connection; both come to the same end.
//   - The network takes no time and loses nothing.
//   - A CA with a limit queues work for one second, and refuses what is beyond.
//     A refusal costs it nothing, as that of a load balancer before it, except
//     where the model says so.
//   - The backlog that Retry-After is made of are the devices that were sent
//     away and not served yet; the CA knows them again by their requests.
//   - The units are those of systemd/: 10 min for the run of a program, the next
//     start 15 min after the boot or the last one, and up to 5 min more by
//     chance. The minute by which systemd may shift a timer (AccuracySec=) is
//     left out: it would spread the devices further.
//   - A run waits within its budget only. Fleets whose work takes a CA longer
//     than that, but not much longer, lose up to a period of the timer.
//   - Nobody switches a device off, and no request fails for another reason.
//
// What is measured: how long until the last device has both certificates, and
// how that compares with the ideal; requests of a device; and whether devices
// come in waves: the most of the fleet that asked in any one second (after the
// first five, when all of them are powered on), and that peak beside the mean,
// until nine of ten certificates were issued.
//
// It writes a table, plots of the requests in each second (SVG) and all figures
// (JSON). It exits with 1 if a target is missed, and with 2 if it cannot run.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
)

func main() {
	fleets := flag.String("fleets", "10000,100000,1000000", "`sizes` of the fleets")
	seed := flag.Uint64("seed", 1, "`number` that all chance comes from")
	out := flag.String("out", "build/herd", "`directory` for plots and figures")
	flag.Parse()
	met, err := run(os.Stdout, os.Stderr, *fleets, *seed, *out)
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(2)
	case !met:
		os.Exit(1)
	}
}

func run(w, progress io.Writer, fleets string, seed uint64, out string) (met bool, err error) {
	if flag.NArg() != 0 {
		return false, errors.New("cannot simulate: give flags only")
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return false, fmt.Errorf("cannot write the plots: %w", err)
	}
	fmt.Fprintf(w, "seed %d; %d certificates a device, %d a second\n", seed, certificates, rate)
	var all []outcome
	met = true
	for size := range strings.SplitSeq(fleets, ",") {
		n, err := strconv.Atoi(size)
		if err != nil || n < 1 || n > 10_000_000 {
			return false, fmt.Errorf("cannot simulate a fleet of %q devices: give numbers up to 10000000", size)
		}
		var outcomes []outcome
		for _, m := range models {
			fmt.Fprintf(progress, "%d devices: %s\n", n, m.name)
			outcomes = append(outcomes, m.simulate(n, seed))
		}
		missed := table(w, outcomes)
		met = met && len(missed) == 0
		for _, line := range missed {
			fmt.Fprintln(w, "missed:", line)
		}
		if err := os.WriteFile(filepath.Join(out, size+".svg"), plot(outcomes), 0o644); err != nil {
			return false, fmt.Errorf("cannot write the plot: %w", err)
		}
		all = append(all, outcomes...)
	}
	data, err := json.Marshal(struct {
		Seed     uint64    `json:"seed"`
		Rate     int       `json:"certificates_per_second"`
		Outcomes []outcome `json:"outcomes"`
	}{seed, rate, all})
	if err != nil {
		return false, err
	}
	if err := os.WriteFile(filepath.Join(out, "herd.json"), append(data, '\n'), 0o644); err != nil {
		return false, fmt.Errorf("cannot write the figures: %w", err)
	}
	fmt.Fprintf(w, "\nplots and figures: %s\n", out)
	return met, nil
}

// table prints the outcomes of one fleet and returns the targets that they miss.
func table(w io.Writer, outcomes []outcome) (missed []string) {
	fmt.Fprintf(w, "\n%d devices, ideal %.0f s\n", outcomes[0].Devices, outcomes[0].ideal())
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CA\tall done\tnine of ten\trequests a device\tin one second\tpeak to mean\ttargets")
	for _, o := range outcomes {
		nine := "-"
		if o.Issued >= 0.9 {
			nine = fmt.Sprintf("%d s", o.NineOfTen)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\tmean %.1f, most %d\t%d (%.1f %%)\t%.1f\t%s\n", o.Model, o.took(), nine,
			o.MeanRequests, o.MostRequests, o.Peak, 100*o.PeakShare, o.PeakToMean, o.verdict())
		missed = append(missed, o.Missed...)
	}
	t.Flush()
	return missed
}
