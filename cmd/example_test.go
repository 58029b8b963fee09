package cmd

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// example NAME gives the device the configuration of debian/examples/NAME in the
// place of all but the TPM, the board and the budget. The servers, the account and
// the ID scope, which its reader has to change, become those of the lab.
func cmdExample(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: example NAME")
	}
	w := theWorld(ts)
	for _, table := range []string{"idevid", "ldevid", "edge"} {
		delete(w.config, table)
	}
	w.set("edge.global_endpoint", w.addresses["dps_url"])
	if w.lab == nil {
		delete(w.config, "edge")
	}
	ts.Check(w.write())

	change := strings.NewReplacer(
		"\"est.maker.example\"", "\""+ts.Getenv("LAB_est_url_host")+"\"", "\"est.owner.example\"", "\""+ts.Getenv("LAB_est_url_host")+"\"",
		"\"factory\"", "\""+w.addresses["username"]+"\"", "0ne00AAAAAA", w.addresses["id_scope"])
	dropIns := filepath.Join(w.root, "etc/tpm2cloud/tpm2cloud.toml.d")
	ts.Check(os.RemoveAll(dropIns))
	ts.Check(os.MkdirAll(dropIns, 0o755))
	files, err := filepath.Glob(filepath.Join("../debian/examples", args[0], "tpm2cloud.toml.d/*.toml"))
	ts.Check(err)
	if len(files) == 0 {
		ts.Fatalf("there is no example %s", args[0])
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		ts.Check(err)
		ts.Check(os.WriteFile(filepath.Join(dropIns, filepath.Base(file)), []byte(change.Replace(string(text))), 0o644))
	}
}
