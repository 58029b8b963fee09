package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// print writes the tables.
func (f *figures) print(out io.Writer, kinds bool) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(title string, cell func(*result) string) {
		fmt.Fprint(w, title, "\t")
		for i := range f.results {
			fmt.Fprint(w, cell(&f.results[i]), "\t")
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(out)
	row("", func(r *result) string { return r.name })
	row("wall time, s", func(r *result) string { return r.wall().String() })
	row("CPU time, s", func(r *result) string { return r.cpu().String() })
	row("processes", func(r *result) string { return fmt.Sprint(r.processes) })
	row("TPM commands", func(r *result) string { return fmt.Sprintf("%.0f", r.total().median) })
	row("of our own code", func(r *result) string { return ifOurs(r, "%.0f", func() float64 { return r.own().median }) })
	row("SLB9670 (model), s", func(r *result) string { return fmt.Sprintf("%.1f", r.on(slb9670).median) })
	row("the same, salts as operations, s", func(r *result) string { return fmt.Sprintf("%.1f", r.on(slb9670.withSalts()).median) })
	row("peak memory, MB", func(r *result) string {
		return ifOurs(r, "%.1f", func() float64 { return float64(largest(r.rss)) / 1e6 })
	})
	row("second run, slowest program, ms", func(r *result) string {
		return ifOurs(r, "%.0f", func() float64 { return largest(r.againMS()) })
	})
	w.Flush()
	fmt.Fprintf(out, "\nMedians of %d runs (lowest-highest). The model: RSA 2048 key %d ms, RSA operation %d ms, P-256 key %d ms,\n"+
		"P-256 operation %d ms (wolfTPM's benchmarks); any other command %d ms, which is an assumption.\n",
		len(f.ours().first), slb9670[RSAKey].Milliseconds(), slb9670[RSAPrivate].Milliseconds(),
		slb9670[ECCKey].Milliseconds(), slb9670[ECCPrivate].Milliseconds(), slb9670[Plain].Milliseconds())

	if kinds {
		f.printKinds(out, "TPM command (of our own code)", byCode)
		f.printKinds(out, "work of the TPM (for our own code)", byCost)
	}
	fmt.Fprintln(out)
	w = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, l := range f.limits() {
		verdict, sign := "PASS", "<="
		if !l.met() {
			verdict = "FAIL"
		}
		if l.atLeast {
			sign = ">="
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s %s\t%s\n", verdict, l.name, number(l.value), sign, strings.TrimSpace(number(l.bound)+" "+l.unit), l.what)
	}
	w.Flush()
	if files, _, _ := f.ours().touched(); len(files) > 0 {
		fmt.Fprintln(out, "\nA second run wrote", strings.Join(files, ", "))
	}
}

// printKinds writes how often each kind of command was sent, and by our own code.
func (f *figures) printKinds(out io.Writer, title string, name func(Command) string) {
	counts := make([]map[string]kind, len(f.results))
	var all []string
	for i := range f.results {
		counts[i] = make(map[string]kind)
		for _, k := range f.results[i].kinds(name) {
			counts[i][k.Name] = k
			if !slices.Contains(all, k.Name) {
				all = append(all, k.Name)
			}
		}
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, title, "\t")
	for i := range f.results {
		fmt.Fprint(w, f.results[i].name, "\t")
	}
	fmt.Fprintln(w)
	for _, each := range all {
		fmt.Fprint(w, each, "\t")
		for i := range f.results {
			k := counts[i][each]
			if k.Own > 0 {
				fmt.Fprintf(w, "%d (%d)\t", k.Total, k.Own)
			} else {
				fmt.Fprintf(w, "%d\t", k.Total)
			}
		}
		fmt.Fprintln(w)
	}
	w.Flush()
}

// ifOurs formats a figure that the reference has not got.
func ifOurs(r *result, format string, value func() float64) string {
	if r.theirs {
		return "-"
	}
	return fmt.Sprintf(format, value())
}

func (s spread) String() string {
	return fmt.Sprintf("%.2f (%.2f-%.2f)", s.median, s.lowest, s.highest)
}

// number is a figure with as many digits as it needs.
func number(v float64) string {
	if v == float64(int64(v)) {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
