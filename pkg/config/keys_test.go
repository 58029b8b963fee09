package config

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestKeys(t *testing.T) {
	got := map[string]Key{}
	text := ""
	for _, k := range Keys() {
		got[k.Name] = k
		text += k.Name + " = " + k.Default + "\n"
	}
	for _, want := range []Key{
		{Name: "run.budget", Default: `"10m"`},
		{Name: "ek.trust", Default: `["/usr/share/tpm2cloud/ek-roots", "/etc/tpm2cloud/ek-roots"]`},
		{Name: "ek.allow_expired", Default: "true"},
		{Name: "tpm.owner_auth", Default: `""`, Secret: true},
		{Name: "idevid.storage", Default: `"platform"`, Words: []string{"platform", "owner"}},
		// What no program takes is no word of the key: an IDevID cannot be asked for with an IDevID.
		{Name: "idevid.enroll.method", Default: `"est-ba"`, Words: []string{"ca", "est-secret", "est-ba"}},
		{Name: "ldevid.enroll.method", Default: `"est-mtls"`, Words: []string{"ca", "est-secret", "est-ba", "est-mtls"}},
		{Name: "ldevid.enroll.days", Default: "0"},
	} {
		if d := cmp.Diff(want, got[want.Name]); d != "" {
			t.Errorf("%s: %s", want.Name, d)
		}
	}
	// Every default reads as what it is the default of.
	c, problem := load(t, text)
	if problem != "" {
		t.Fatal(problem)
	}
	if d := cmp.Diff(Default(), c, ignore, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
	if keys := Keys(); !slices.ContainsFunc(keys, func(k Key) bool { table, name := k.Table(); return table == "edge.est" && name == "label" }) {
		t.Error("edge.est.label is missing")
	}
}

func TestKeysDurations(t *testing.T) {
	for d, want := range map[time.Duration]string{
		10 * time.Minute: `"10m"`, time.Hour: `"1h"`, 90 * time.Second: `"1m30s"`, 10 * time.Second: `"10s"`, 500 * time.Millisecond: `"500ms"`, 62 * time.Minute: `"1h2m"`,
	} {
		c := Default()
		c.Run.Budget = Duration(d)
		if got := literal(schema(c).at["run.budget"]); got != want {
			t.Errorf("%s is written as %s, want %s", d, got, want)
		}
	}
}
