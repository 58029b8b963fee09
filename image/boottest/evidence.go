//go:build boot

package boottest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// --- verdicts ----------------------------------------------------------------

var evidence = flag.String("evidence", "", "`folder` for the table of verdicts and the journals of machines that failed")

var verdicts struct {
	sync.Mutex
	list []verdict
}

type verdict struct {
	scenario, text string
	took           time.Duration
	note           string
}

// scenario is the first line of each test: what it shows, in a few words. Note
// adds a figure to its line in the table.
func scenario(t *testing.T, name string) (note func(format string, args ...any)) {
	begun, said := time.Now(), ""
	if *evidence != "" {
		// What an earlier run kept is not evidence of this one.
		must(t, os.RemoveAll(filepath.Join(*evidence, t.Name())))
	}
	t.Cleanup(func() {
		v := verdict{name, "ok", time.Since(begun), said}
		switch {
		case t.Failed():
			v.text = "FAILED"
		case t.Skipped():
			v.text = "skipped"
		}
		verdicts.Lock()
		verdicts.list = append(verdicts.list, v)
		verdicts.Unlock()
	})
	return func(format string, args ...any) { said = fmt.Sprintf(format, args...) }
}

// report prints the table, and keeps it.
func report() error {
	if len(verdicts.list) == 0 {
		return nil
	}
	var b bytes.Buffer
	longest := 0
	for _, v := range verdicts.list {
		longest = max(longest, len(v.scenario))
	}
	fmt.Fprintf(&b, "\n%-*s  %-8s %8s\n", longest, "scenario", "verdict", "seconds")
	for _, v := range verdicts.list {
		fmt.Fprintln(&b, strings.TrimRight(fmt.Sprintf("%-*s  %-8s %8.1f  %s", longest, v.scenario, v.text, v.took.Seconds(), v.note), " "))
	}
	os.Stdout.Write(b.Bytes())
	if *evidence == "" {
		return nil
	}
	if err := os.MkdirAll(*evidence, 0o755); err != nil {
		return fmt.Errorf("cannot keep the table: %w", err)
	}
	return os.WriteFile(filepath.Join(*evidence, "table.txt"), b.Bytes(), 0o644)
}

// keep writes something into the folder for evidence.
func keep(t testing.TB, name, text string) {
	t.Helper()
	if *evidence == "" {
		return
	}
	path := filepath.Join(*evidence, t.Name(), name)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

// --- the journal -------------------------------------------------------------

// Entry is an entry of a journal, by its fields (systemd.journal-fields(7)).
type Entry map[string]string

// unitFailed is a MESSAGE_ID of systemd's own (sd-messages.h).
const unitFailed = "be02cf6855d2428ba40df7e9d022f03d"

// MESSAGE_IDs of this project, as its catalog has them.
const (
	ready         = "0f38fff7aebd4ad680356daccda90013"
	noTPM         = "c8d8dc61005d4831bd8f6c51911eff95"
	waiting       = "b2cff04b43674137b909319990105b67"
	gaveUp        = "3f94308b1740404580b80f6013d1fb1b"
	serverRefused = "07ca3320020d4d8db355a86f0bdf220d"
	otherTPM      = "a9f716547000468f9e8f4d227bcd7683"
	cannotGoOn    = "704aeab29c6848b193ea763b1305b146"
)

// Journal reads entries of the journal below a root, oldest first: those that
// match all of FIELD=VALUE, or journalctl's options.
func Journal(t testing.TB, root string, matches ...string) (entries []Entry) {
	t.Helper()
	args := append([]string{"-D", filepath.Join(root, "var/log/journal"), "-o", "json", "--all", "-q", "--no-pager"}, matches...)
	out, err := exec.Command("journalctl", args...).Output()
	if err != nil {
		t.Fatalf("journalctl %s: %v", strings.Join(args, " "), err)
	}
	for _, line := range lines(string(out)) {
		var fields map[string]any
		must(t, json.Unmarshal([]byte(line), &fields))
		e := Entry{}
		for name, value := range fields {
			// Bytes that are no text are a list of numbers.
			if s, ok := value.(string); ok {
				e[name] = s
			}
		}
		entries = append(entries, e)
	}
	return entries
}

// JournalText is the journal as a person reads it.
func JournalText(root string) string {
	out, err := exec.Command("journalctl", "-D", filepath.Join(root, "var/log/journal"), "-o", "short-monotonic", "-q", "--no-pager").CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s%v\n", out, err)
	}
	return string(out)
}

// --- files -------------------------------------------------------------------

// Tree lists all below some folders of a root, with all that a change would
// show in: content, mode, owner, time.
func Tree(t testing.TB, root string, folders ...string) (list []string) {
	t.Helper()
	for _, folder := range folders {
		must(t, filepath.WalkDir(filepath.Join(root, folder), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			stat := info.Sys().(*syscall.Stat_t)
			line := fmt.Sprintf("%s %v %d:%d", strings.TrimPrefix(path, root), info.Mode(), stat.Uid, stat.Gid)
			switch {
			case info.Mode().IsRegular():
				line += fmt.Sprintf(" %d %s %x", info.Size(), info.ModTime().Format(time.RFC3339Nano), sha256.Sum256([]byte(read(t, path))))
			case info.Mode()&fs.ModeSymlink != 0:
				target, err := os.Readlink(path)
				if err != nil {
					return err
				}
				line += " -> " + target
			}
			list = append(list, line)
			return nil
		}))
	}
	return list
}

// same demands two equal lists, and shows what differs.
func same(t testing.TB, what string, before, after []string) {
	t.Helper()
	for _, line := range before {
		if !slices.Contains(after, line) {
			t.Errorf("%s: before: %s", what, line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			t.Errorf("%s: after: %s", what, line)
		}
	}
}

// --- identities ----------------------------------------------------------------

// Where the identities are.
const (
	srkHandle    = "0x81000001"
	ldevidHandle = "0x81000002"
	ekHandle     = "0x81010001"
	idevidHandle = "0x81020000"
	idevidIndex  = "0x1c90000"
	ekIndex      = "0x1c00002"
)

// Identities are those of a machine, as strangers have found and verified them.
type Identities struct {
	EK, IDevID, LDevID   string // public keys, in PEM
	IDevIDName, LDevName string // common names
	IDevIDCertificate    string // PEM, of the device alone
	LDevIDCertificate    string
}

// Verify looks at a machine that is off and has all its identities: at its TPM,
// and at its files, which are below root. Each certificate must lead to its CA
// and be for the key in the TPM, the IDevID's must be locked, and the token must
// be able to sign.
func Verify(t testing.TB, tpm *TPM, root string, lab *Lab) (ids Identities) {
	t.Helper()
	tpm.powered(t, func() { ids = verify(t, tpm, root, lab) })
	return ids
}

func verify(t testing.TB, tpm *TPM, root string, lab *Lab) Identities {
	t.Helper()
	dir := scratch("verify")
	file := func(name string) string { return filepath.Join(dir, name) }
	same(t, "persistent handles", []string{srkHandle, ldevidHandle, ekHandle, idevidHandle}, tpm.Handles(t))

	must(t, os.WriteFile(file("idevid.der"), []byte(tpm.NV(t, idevidIndex)), 0o644))
	command(t, nil, "openssl", "x509", "-inform", "der", "-in", file("idevid.der"), "-out", file("idevid.pem"))
	if attributes := tpm.Tool(t, "tpm2_nvreadpublic", idevidIndex); !strings.Contains(attributes, "writelocked") {
		t.Errorf("the index of the IDevID certificate is not locked:\n%s", attributes)
	}
	copyFile(t, filepath.Join(root, "var/lib/tpm2cloud/ldevid/certificate.pem"), file("ldevid.pem"))
	command(t, nil, "openssl", "x509", "-in", file("ldevid.pem"), "-out", file("ldevid-leaf.pem"))
	command(t, nil, "openssl", "verify", "-CAfile", lab.About["idevid_ca"], file("idevid.pem"))
	command(t, nil, "openssl", "verify", "-CAfile", lab.About["ldevid_ca"], "-purpose", "sslclient", file("ldevid.pem"))

	ids := Identities{
		EK: tpm.Key(t, ekHandle), IDevID: tpm.Key(t, idevidHandle), LDevID: tpm.Key(t, ldevidHandle),
		IDevIDName: commonName(t, file("idevid.pem")), LDevName: commonName(t, file("ldevid.pem")),
		IDevIDCertificate: read(t, file("idevid.pem")), LDevIDCertificate: read(t, file("ldevid-leaf.pem")),
	}
	for name, key := range map[string]string{"idevid": ids.IDevID, "ldevid": ids.LDevID} {
		if certified := command(t, nil, "openssl", "x509", "-in", file(name+".pem"), "-noout", "-pubkey"); certified != key {
			t.Errorf("the certificate of %s is not for the key in the TPM", name)
		}
	}
	signWithLDevID(t, tpm, root, file)
	return ids
}

// signWithLDevID signs through PKCS#11 with a copy of the token's store, and has
// openssl verify that.
func signWithLDevID(t testing.TB, tpm *TPM, root string, file func(string) string) {
	t.Helper()
	modules, err := filepath.Glob("/usr/lib/*/pkcs11/libtpm2_pkcs11.so")
	must(t, err)
	if len(modules) == 0 {
		t.Fatal("there is no libtpm2_pkcs11 on this machine: run scripts/deps")
	}
	command(t, nil, "cp", "-r", filepath.Join(root, "var/lib/tpm2cloud/pkcs11"), file("store"))
	if n := strings.TrimSpace(command(t, nil, "sqlite3", file("store/tpm2_pkcs11.sqlite3"), "SELECT count(*) FROM tokens")); n != "1" {
		t.Errorf("the store has %s tokens, and one is expected", n)
	}
	must(t, os.WriteFile(file("message"), []byte("signed with the LDevID\n"), 0o644))
	// The PIN is not in the argument list, which everybody can read.
	env := append(tpm.environment(), "TPM2_PKCS11_STORE="+file("store"), "PIN="+strings.TrimSpace(read(t, filepath.Join(root, "var/lib/tpm2cloud/pins/user-pin"))))
	command(t, env, "pkcs11-tool", "--module", modules[0], "--token-label", "edge", "--login", "--pin", "env:PIN", "--sign",
		"--mechanism", "ECDSA-SHA256", "--id", keyID(t, env, modules[0], "ldevid"), "--signature-format", "openssl", "--input-file", file("message"), "--output-file", file("signature"))
	must(t, os.WriteFile(file("ldevid.pub"), []byte(command(t, nil, "openssl", "x509", "-in", file("ldevid.pem"), "-noout", "-pubkey")), 0o644))
	command(t, nil, "openssl", "dgst", "-sha256", "-verify", file("ldevid.pub"), "-signature", file("signature"), file("message"))
}

// keyID is the id, in hex, of the private key of a label: to sign, pkcs11-tool takes a key by its id, or
// else the first one, which may be the agent's.
func keyID(t testing.TB, env []string, module, label string) (id string) {
	t.Helper()
	found := false
	for _, line := range lines(command(t, env, "pkcs11-tool", "--module", module, "--token-label", "edge", "--login", "--pin", "env:PIN", "--list-objects", "--type", "privkey")) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), ":"); name {
		case "label":
			found = strings.TrimSpace(value) == label
		case "ID":
			if found {
				id = strings.TrimSpace(value)
			}
		}
	}
	if id == "" {
		t.Errorf("the token has no private key %q", label)
	}
	return id
}

func commonName(t testing.TB, certificate string) string {
	t.Helper()
	subject := command(t, nil, "openssl", "x509", "-in", certificate, "-noout", "-subject", "-nameopt", "multiline")
	for _, line := range lines(subject) {
		if name, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(name) == "commonName" {
			return strings.TrimSpace(value)
		}
	}
	t.Errorf("%s has no common name: %s", certificate, subject)
	return ""
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	must(t, os.WriteFile(to, []byte(read(t, from)), 0o644))
}
