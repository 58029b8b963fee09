package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		runs []int
		want spread
	}{
		{[]int{3}, spread{3, 3, 3}},
		{[]int{4, 1, 2}, spread{2, 1, 4}},
		{[]int{4, 1, 2, 3}, spread{2.5, 1, 4}},
	} {
		if got := spreadOf(c.runs, func(n int) float64 { return float64(n) }); got != c.want {
			t.Errorf("%v: got %v, want %v", c.runs, got, c.want)
		}
	}
}

func TestLimit(t *testing.T) {
	for _, c := range []struct {
		limit limit
		want  bool
	}{
		{limit{value: 10, bound: 10, atLeast: true}, true},
		{limit{value: 9.9, bound: 10, atLeast: true}, false},
		{limit{value: 10, bound: 10}, true},
		{limit{value: 10.1, bound: 10}, false},
	} {
		if got := c.limit.met(); got != c.want {
			t.Errorf("%+v: got %t", c.limit, got)
		}
	}
}

func TestCountExecs(t *testing.T) {
	const trace = `10 execve("/usr/bin/bash", ["bash"], 0x7ffd /* 9 vars */) = 0
11 execve("/usr/local/bin/cut", ["cut"], 0x55 /* 9 vars */) = -1 ENOENT (No such file or directory)
11 execve("/usr/bin/cut", ["cut"], 0x55 /* 9 vars */ <unfinished ...>
12 execve("/usr/bin/stat", ["stat", "= 0"], 0x55 /* 9 vars */ <unfinished ...>
11 <... execve resumed>) = 0
12 <... execve resumed>) = 0
12 +++ exited with 0 +++
`
	if got := countExecs(trace); got != 3 {
		t.Errorf("got %d, want 3", got)
	}
}

func TestProcFields(t *testing.T) {
	if got := fdFlags("pos:\t0\nflags:\t02004002\nmnt_id:\t11\n"); got != 0o2004002 {
		t.Errorf("flags: got %o", got)
	}
	if got := highWater("VmPeak:\t  99 kB\nVmHWM:\t   1234 kB\nVmRSS:\t 5 kB\n"); got != 1234*1024 {
		t.Errorf("VmHWM: got %d", got)
	}
}

func TestChanged(t *testing.T) {
	root := t.TempDir()
	write := func(name, data string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	look := func() map[string]file {
		t.Helper()
		files, err := snapshot(root)
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	for _, name := range []string{"same", "replaced", "longer", "gone"} {
		write(name, "1")
	}
	before := look()
	if got := changed(root, before, look()); len(got) != 0 {
		t.Errorf("nothing was done: got %v", got)
	}
	before = look()
	write("longer", "22")
	write("new", "1")
	write("temporary", "1")
	if err := os.Rename(filepath.Join(root, "temporary"), filepath.Join(root, "replaced")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "gone")); err != nil {
		t.Fatal(err)
	}
	got := changed(root, before, look())
	slices.Sort(got)
	if want := []string{"/gone", "/longer", "/new", "/replaced"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
