package main

import (
	"cmp"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// figures are all that was measured.
type figures struct {
	results  []result // of the reference, of ours, of ours with RSA
	binaries map[string]int64
}

// result is what was measured of one contender.
type result struct {
	contender
	processes int
	rss       map[string]int // bytes, of each program
	first     []sample
	again     []second
}

func (f *figures) reference() *result { return &f.results[0] }
func (f *figures) ours() *result      { return &f.results[1] }
func (f *figures) oursRSA() *result   { return &f.results[2] }

func (r *result) wall() spread {
	return spreadOf(r.first, func(s sample) float64 { return s.wall.Seconds() })
}
func (r *result) cpu() spread {
	return spreadOf(r.first, func(s sample) float64 { return s.cpu.Seconds() })
}
func (r *result) total() spread {
	return spreadOf(r.first, func(s sample) float64 { return float64(len(s.commands)) })
}
func (r *result) own() spread {
	return spreadOf(r.first, func(s sample) float64 { return float64(s.own()) })
}
func (r *result) on(m model) spread {
	return spreadOf(r.first, func(s sample) float64 { return s.on(m).Seconds() })
}

// againMS is the time of each program of a second run.
func (r *result) againMS() map[string]float64 {
	all := make(map[string]float64)
	for name := range r.again[0].programs {
		all[name] = rounded(spreadOf(r.again, func(s second) float64 { return s.programs[name].Seconds() * 1000 }).median)
	}
	return all
}

// largest is the largest value.
func largest[N int | int64 | float64](m map[string]N) N {
	return slices.Max(slices.Collect(maps.Values(m)))
}

// rounded is as exact as any figure here deserves.
func rounded(v float64) float64 { return math.Round(v*1000) / 1000 }

func (s sample) own() int {
	n := 0
	for _, c := range s.commands {
		if c.Own {
			n++
		}
	}
	return n
}

// on is the time that a chip would work on the commands.
func (s sample) on(m model) time.Duration {
	var sum time.Duration
	for _, c := range s.commands {
		sum += m[c.Cost]
	}
	return sum
}

// touched is what the second runs of our programs did that they should not.
func (r *result) touched() (files []string, requests int, tpm bool) {
	for _, s := range r.again {
		files = append(files, s.written...)
		requests += s.requests
		tpm = tpm || s.tpm
	}
	slices.Sort(files)
	return slices.Compact(files), requests, tpm
}

// spread is what several runs gave.
type spread struct{ median, lowest, highest float64 }

func spreadOf[T any](runs []T, figure func(T) float64) spread {
	var all []float64
	for _, r := range runs {
		all = append(all, figure(r))
	}
	slices.Sort(all)
	n := len(all)
	return spread{(all[(n-1)/2] + all[n/2]) / 2, all[0], all[n-1]}
}

// limit is what the project promises.
type limit struct {
	name       string
	value      float64
	bound      float64
	atLeast    bool // else at most
	unit, what string
}

func (l limit) met() bool {
	if l.atLeast {
		return l.value >= l.bound
	}
	return l.value <= l.bound
}

func (f *figures) limits() []limit {
	ref, ours, rsa := f.reference(), f.ours(), f.oursRSA()
	files, requests, tpm := ours.touched()
	return []limit{
		{"cpu_ratio", ref.cpu().median / ours.cpu().median, 10, true, "", "CPU time, reference : ours"},
		{"wall_ratio", ref.wall().median / ours.wall().median, 3, true, "", "wall time, reference : ours"},
		{"rsa_cpu_ratio", ref.cpu().median / rsa.cpu().median, 8, true, "", "CPU time, reference : ours with RSA keys"},
		{"tpm_commands_own", ours.own().median, 60, false, "", "TPM commands of our code"},
		{"tpm_commands_total", ours.total().median, 110, false, "", "TPM commands, the PKCS#11 library's included"},
		{"processes", float64(ours.processes), 4, false, "", "processes started"},
		{"slb9670_seconds", ours.on(slb9670).median, 5, false, "s", "an SLB9670's time, modelled"},
		{"second_run_ms", largest(ours.againMS()), 100, false, "ms", "slowest program of a second run"},
		{"second_run_files", float64(len(files)), 0, false, "", "files written by a second run"},
		{"second_run_requests", float64(requests), 0, false, "", "requests sent by a second run"},
		{"second_run_tpm", float64(count(tpm)), 0, false, "", "permanent changes of the TPM by a second run"},
		{"peak_rss_mb", float64(largest(ours.rss)) / 1e6, 40, false, "MB", "memory of the largest program"},
		{"binary_mb", float64(largest(f.binaries)) / 1e6, 9, false, "MB", "largest program of a boot, stripped"},
	}
}

func (f *figures) met() bool {
	return !slices.ContainsFunc(f.limits(), func(l limit) bool { return !l.met() })
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// kind is how often something was done in one run.
type kind struct {
	Name  string `json:"name"`
	Total int    `json:"total"`
	Own   int    `json:"own"`
}

// kinds counts the commands of the last run by what name says, most frequent
// first.
func (r *result) kinds(name func(Command) string) []kind {
	byName := make(map[string]kind)
	for _, c := range r.first[len(r.first)-1].commands {
		k := byName[name(c)]
		k.Name = name(c)
		k.Total++
		k.Own += count(c.Own)
		byName[k.Name] = k
	}
	return slices.SortedFunc(maps.Values(byName), func(a, b kind) int {
		return cmp.Or(cmp.Compare(b.Total, a.Total), cmp.Compare(a.Name, b.Name))
	})
}

func byCode(c Command) string { return nameOf(c.Code) }
func byCost(c Command) string { return c.Cost.String() }

// write writes the figures as JSON: flat, what the limits are about, then more
// of each contender.
func (f *figures) write(path string) error {
	all := map[string]any{
		"runs":               len(f.ours().first),
		"met":                f.met(),
		"binary_bytes":       f.binaries,
		"peak_rss_bytes":     f.ours().rss,
		"second_run_each":    f.ours().againMS(),
		"slb9670_assumed_ms": slb9670[Plain].Milliseconds(),
	}
	for _, l := range f.limits() {
		all[l.name] = rounded(l.value)
	}
	type times struct {
		WallSeconds float64 `json:"wall_seconds"`
		WallMin     float64 `json:"wall_seconds_min"`
		WallMax     float64 `json:"wall_seconds_max"`
		CPUSeconds  float64 `json:"cpu_seconds"`
		CPUMin      float64 `json:"cpu_seconds_min"`
		CPUMax      float64 `json:"cpu_seconds_max"`
		Processes   int     `json:"processes"`
		TPMCommands float64 `json:"tpm_commands"`
		Chip        float64 `json:"slb9670_seconds"`
		ChipSalts   float64 `json:"slb9670_seconds_with_salts"`
		Kinds       []kind  `json:"kinds"`
		Costs       []kind  `json:"costs"`
	}
	contenders := make(map[string]times)
	for i := range f.results {
		r := &f.results[i]
		wall, cpu := r.wall(), r.cpu()
		contenders[r.name] = times{
			rounded(wall.median), rounded(wall.lowest), rounded(wall.highest),
			rounded(cpu.median), rounded(cpu.lowest), rounded(cpu.highest),
			r.processes, r.total().median, rounded(r.on(slb9670).median), rounded(r.on(slb9670.withSalts()).median), r.kinds(byCode), r.kinds(byCost),
		}
	}
	all["contenders"] = contenders
	data, err := json.MarshalIndent(all, "", "  ")
	if err == nil {
		err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, append(data, '\n'), 0o644))
	}
	if err != nil {
		return fmt.Errorf("cannot write the figures: %w", err)
	}
	return nil
}

// binarySizes are those of the programs for devices, without what strip(1)
// would remove: the packages have them stripped, a developer may not.
func binarySizes(dir string) (map[string]int64, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "tpm2cloud*"))
	if err != nil {
		return nil, fmt.Errorf("cannot list the programs: %w", err)
	}
	all := make(map[string]int64)
	for _, path := range paths {
		if name := filepath.Base(path); !slices.Contains(notAtBoot, name) {
			if all[name], err = strippedSize(path); err != nil {
				return nil, fmt.Errorf("cannot measure a program: %w", err)
			}
		}
	}
	return all, nil
}

// notAtBoot are programs for another machine, and the operator's on the device,
// which links what all have and which only its package's limit holds down.
var notAtBoot = []string{labProgram, "tpm2cloud-azure", "tpm2cloud"}

func strippedSize(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	f, err := elf.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size := info.Size()
	for _, s := range f.Sections {
		// What is not loaded into memory is for debuggers, but for the table of
		// the sections' names.
		if s.Type != elf.SHT_NULL && s.Flags&elf.SHF_ALLOC == 0 && s.Name != ".shstrtab" {
			size -= int64(s.FileSize)
		}
	}
	return size, nil
}
