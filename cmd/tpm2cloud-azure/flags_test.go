package main

import (
	"flag"
	"os"
	"strings"
	"testing"
)

// TestManual: each flag is in the manual page, and each flag there is one.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("../../debian/man/tpm2cloud-azure.1.scd")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, v := range verbs {
		v.flagSet(&options{}).VisitAll(func(f *flag.Flag) {
			known[f.Name] = true
			if !strings.Contains(string(page), "*--"+f.Name+"*") {
				t.Errorf("tpm2cloud-azure(1) does not have --%s", f.Name)
			}
		})
	}
	for _, part := range strings.Split(string(page), "*--")[1:] {
		// In the text a flag may have its value with it.
		if name, _, _ := strings.Cut(part[:strings.Index(part, "*")], " "); !known[name] {
			t.Errorf("tpm2cloud-azure(1) has --%s, and the program has not", name)
		}
	}
}
