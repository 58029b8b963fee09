package token

import (
	"crypto"
	"crypto/rand"
	"database/sql"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

func TestAbsentAndEmptyStore(t *testing.T) {
	dir := t.TempDir()
	for _, mode := range []Mode{ReadOnly, ReadWrite} {
		if _, err := OpenStore(dir, mode); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("absent store: %v", err)
		}
	}
	if err := Recover(dir); err != nil {
		t.Errorf("Recover of an absent store: %v", err)
	}
	if names := list(t, dir); names != "" {
		t.Errorf("files were made: %s", names)
	}
	// What sqlite3_open leaves if the library is cut right after it.
	write(t, filepath.Join(dir, DBName), "")
	s := must[*Store](t)(OpenStore(dir, ReadWrite))
	defer s.Close()
	if _, err := s.Token("edge"); !errors.Is(err, ErrNoToken) || s.Schema() != 0 {
		t.Errorf("schema %d, token %v", s.Schema(), err)
	}
	if err := s.AddKey(1, testKey()); !errors.Is(err, ErrNoToken) {
		t.Errorf("AddKey: %v", err)
	}
	if err := RemoveStore(dir); err != nil || list(t, dir) != "" {
		t.Errorf("RemoveStore: %v, left: %s", err, list(t, dir))
	}
	write(t, filepath.Join(dir, DBName), strings.Repeat("not a database\n", 100))
	if _, err := OpenStore(dir, ReadOnly); !errors.Is(err, ErrCorrupt) {
		t.Errorf("garbage: %v", err)
	}
	if err := Recover(dir); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Recover of garbage: %v", err)
	}
}

func TestReadOnlyDirectory(t *testing.T) {
	dir := madeStore(t)
	before := list(t, dir)
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(dir, 0o700)
	s := must[*Store](t)(OpenStore(dir, ReadOnly))
	defer s.Close()
	tok := must[*Token](t)(s.Token("edge"))
	if tok.Seals.UserSalt != "us" || string(tok.Seals.SOPrivate) != "SOPRIV" || tok.Primary.Handle != 0x81000001 {
		t.Errorf("%+v", tok)
	}
	if after := list(t, dir); after != before {
		t.Errorf("files changed: %s, were %s", after, before)
	}
	if err := s.AddKey(tok.ID, testKey()); err == nil {
		t.Error("a store open for reading was written")
	}
}

// A token goes with its keys and seals; what another token has stays.
func TestRemoveToken(t *testing.T) {
	dir := madeStore(t)
	s := must[*Store](t)(OpenStore(dir, ReadWrite))
	defer s.Close()
	tok := must[*Token](t)(s.Token("edge"))
	exec1(t, dir, `INSERT INTO tokens (id, pid, label, config) SELECT 99, pid, 'other', config FROM tokens WHERE label = 'edge'`)
	exec1(t, dir, `INSERT INTO sealobjects (tokid, sopub, sopriv, soauthsalt) SELECT 99, sopub, sopriv, soauthsalt FROM sealobjects`)
	if err := errors.Join(s.AddKey(tok.ID, testKey()), s.AddKey(99, testKey())); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveToken("edge"); err != nil {
		t.Fatal(err)
	}
	if labels := must[[]string](t)(s.Labels()); len(labels) != 1 || labels[0] != "other" {
		t.Errorf("the tokens are %q", labels)
	}
	if keys := must[[]Key](t)(s.Keys(tok.ID, "")); len(keys) != 0 {
		t.Errorf("keys of a removed token: %+v", keys)
	}
	if keys := must[[]Key](t)(s.Keys(99, "")); len(keys) != 1 {
		t.Errorf("keys of the other token: %+v", keys)
	}
	if other := must[*Token](t)(s.Token("other")); len(other.Seals.SOPublic) == 0 {
		t.Error("the other token has lost its seal")
	}
	if err := s.RemoveToken("edge"); !errors.Is(err, ErrNoToken) {
		t.Errorf("a token that is gone: %v", err)
	}
}

func TestHalfPairs(t *testing.T) {
	dir := madeStore(t)
	s := must[*Store](t)(OpenStore(dir, ReadWrite))
	defer s.Close()
	tok := must[*Token](t)(s.Token("edge"))
	k := testKey()
	if err := s.AddKey(tok.ID, k); err != nil {
		t.Fatal(err)
	}
	other := k
	other.Label, other.WrappedAuth = "other", ""
	if err := s.AddKey(tok.ID, other); err != nil {
		t.Fatal(err)
	}
	if keys := must[[]Key](t)(s.Keys(tok.ID, "")); len(keys) != 2 || keys[0].Rows != BothRows || keys[1].Label != "other" {
		t.Fatalf("%+v", keys)
	}
	for _, tt := range []struct {
		cut  string
		want Half
	}{{"? !!int \"0\"\n  : !!int \"3\"", PublicRow}, {"? !!int \"0\"\n  : !!int \"2\"", PrivateRow}} {
		d := filepath.Join(t.TempDir(), "d")
		copyStore(t, dir, d)
		exec1(t, d, `DELETE FROM tobjects WHERE attrs LIKE '%`+tt.cut+`%'`)
		h := must[*Store](t)(OpenStore(d, ReadWrite))
		keys := must[[]Key](t)(h.Keys(tok.ID, k.Label))
		if len(keys) != 1 || keys[0].Rows != tt.want {
			t.Errorf("%+v", keys)
		}
		if err := h.AddKey(tok.ID, k); !errors.Is(err, ErrKeyExists) {
			t.Errorf("AddKey beside a half: %v", err)
		}
		if err := errors.Join(h.RemoveKey(tok.ID, k.Label), h.AddKey(tok.ID, k)); err != nil {
			t.Error(err)
		}
		h.Close()
	}
	exec1(t, dir, `INSERT INTO tobjects (tokid, attrs) VALUES (1, '--- broken')`)
	if _, err := s.Keys(tok.ID, ""); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "row 5") {
		t.Errorf("broken row: %v", err)
	}
	if err := s.AddKey(99, Key{Label: "x", ID: k.ID, TPM2BPublic: k.TPM2BPublic, TPM2BPrivate: k.TPM2BPrivate}); !errors.Is(err, ErrNoToken) {
		t.Errorf("AddKey to no token: %v", err)
	}
}

// The rows that tpm2_ptool and C_GenerateKeyPair write are read, and their keys sign.
func TestStrangersRows(t *testing.T) {
	d := newDevice(t)
	d.flushFirst.Store(true)
	d.run("tpm2_ptool", "init", "--path", d.store)
	d.run("tpm2_ptool", "addtoken", "--pid", "1", "--label", label, "--sopin", soPIN, "--userpin", userPIN, "--path", d.store)
	d.run("tpm2_ptool", "addkey", "--algorithm", "ecc256", "--label", label, "--key-label", "pe", "--userpin", userPIN, "--path", d.store)
	d.run("tpm2_ptool", "addkey", "--algorithm", "rsa2048", "--label", label, "--key-label", "pr", "--userpin", userPIN, "--path", d.store)
	d.run("tpm2_ptool", "addkey", "--algorithm", "aes256", "--label", label, "--key-label", "pa", "--userpin", userPIN, "--path", d.store)
	d.flushFirst.Store(false)
	for _, kind := range []string{"EC:prime256v1", "rsa:2048"} {
		d.run("pkcs11-tool", "--module", d.module, "--token-label", label, "--login", "--pin", userPIN,
			"--keypairgen", "--key-type", kind, "--label", "c"+kind[:1], "--id", map[byte]string{'E': "01", 'r': "02"}[kind[0]])
	}
	s := d.open(ReadOnly)
	tok := must[*Token](t)(s.Token(label))
	if tok.Primary.Handle == 0 || len(tok.Primary.Name) != 34 {
		t.Errorf("primary %+v", tok.Primary)
	}
	keys := must[[]Key](t)(s.Keys(tok.ID, ""))
	if len(keys) != 4 {
		t.Fatalf("%d keys", len(keys))
	}
	wrapping := d.unsealUnder(tpm2.TPMHandle(tok.Primary.Handle), tok.Seals.UserPublic, tok.Seals.UserPrivate, SealAuth(userPIN, tok.Seals.UserSalt))
	d.do(func(m *Module) {
		for _, k := range keys {
			if k.Rows != BothRows {
				t.Errorf("%s: rows %d", k.Label, k.Rows)
			}
			if auth, err := UnwrapAuth(wrapping, k.WrappedAuth); err != nil || len(auth) == 0 {
				t.Errorf("%s: auth of %d bytes, %v", k.Label, len(auth), err)
			}
			signer := must[*Signer](t)(m.Signer(label, userPIN, k.Label, k.ID))
			if !k.Public.(interface{ Equal(crypto.PublicKey) bool }).Equal(signer.Public()) {
				t.Errorf("%s: the module has another public key", k.Label)
			}
			signDigest(t, signer)
			if err := signer.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestUnsuitableKeys(t *testing.T) {
	public := func(change func(*tpm2.TPMTPublic), rsa bool) []byte {
		p := eccTemplate()
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: basePointX}, Y: tpm2.TPM2BECCParameter{Buffer: basePointY}})
		if rsa {
			p = rsaTemplate()
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: append([]byte{0x80}, make([]byte, 255)...)})
		}
		change(&p)
		return tpm2.Marshal(tpm2.New2B(p))
	}
	for name, blob := range map[string][]byte{
		"no blob":       nil,
		"bad size":      {0, 9, 1},
		"sign-only RSA": public(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = false }, true),
		"exponent 0x01000001": public(func(p *tpm2.TPMTPublic) {
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048, Exponent: 0x01000001})
		}, true),
		"no sign":    public(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = false }, false),
		"restricted": public(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = true }, false),
		"fixed scheme": public(func(p *tpm2.TPMTPublic) {
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256,
				Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}})
		}, false),
		"off the curve": public(func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: basePointX}})
		}, false),
	} {
		k := testKey()
		k.TPM2BPublic = blob
		if _, _, err := k.encode(); !errors.Is(err, ErrUnsuitableKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, rsa := range []bool{false, true} {
		k := testKey()
		k.TPM2BPublic = public(func(*tpm2.TPMTPublic) {}, rsa)
		private, _, err := k.encode()
		if err != nil {
			t.Errorf("rsa %v: %v", rsa, err)
		}
		entries := must[[]yamlEntry](t)(parseYAML(private))
		if v, _ := first(entries, "1073743360"); len(v.seq) < 5 {
			t.Errorf("mechanisms %v", v)
		}
		if truth(entries, "261") != rsa {
			t.Errorf("rsa %v, decrypt %v", rsa, !rsa)
		}
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), DBName)
	unlock := must[func()](t)(lock(path))
	// What the library does with a file that another one holds: it waits, and then has
	// a file without a name.
	stale := must[*os.File](t)(os.OpenFile(path+".lock", os.O_RDWR, 0))
	defer stale.Close()
	if err := syscall.Flock(int(stale.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != syscall.EWOULDBLOCK {
		t.Errorf("the lock is not held: %v", err)
	}
	unlock()
	if err := syscall.Flock(int(stale.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Error(err)
	}
	unlock = must[func()](t)(lock(path)) // the held file has no name: no obstacle
	unlock()
	if names := list(t, filepath.Dir(path)); names != "" {
		t.Errorf("left: %s", names)
	}
}

// madeStore is a store with the library's tables and one token, without a TPM.
func madeStore(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, DBName), "")
	exec1(t, dir, `
		CREATE TABLE tokens(id INTEGER PRIMARY KEY, pid INTEGER NOT NULL, label TEXT UNIQUE, config TEXT NOT NULL);
		CREATE TABLE sealobjects(id INTEGER PRIMARY KEY, tokid INTEGER NOT NULL, userpub BLOB, userpriv BLOB,
			userauthsalt TEXT, sopub BLOB NOT NULL, sopriv BLOB NOT NULL, soauthsalt TEXT NOT NULL);
		CREATE TABLE pobjects(id INTEGER PRIMARY KEY, hierarchy TEXT NOT NULL, config TEXT NOT NULL, objauth TEXT NOT NULL);
		CREATE TABLE tobjects(id INTEGER PRIMARY KEY, tokid INTEGER NOT NULL, attrs TEXT NOT NULL);
		CREATE TABLE schema(id INTEGER PRIMARY KEY, schema_version INTEGER NOT NULL);
		INSERT INTO schema VALUES (1, 8);
		INSERT INTO pobjects VALUES (1, 'o', '`+testPrimary+`', '');
		INSERT INTO tokens VALUES (1, 1, 'edge', '---
!!map {
  ? !!str "token-init"
  : !!bool "true",
}
');
		INSERT INTO sealobjects VALUES (1, 1, CAST('UPUB' AS BLOB), CAST('UPRIV' AS BLOB), 'us', CAST('SOPUB' AS BLOB), CAST('SOPRIV' AS BLOB), 'ss')`)
	return dir
}

func exec1(t *testing.T, dir, statement string) {
	t.Helper()
	u := url.URL{Scheme: "file", Path: filepath.Join(dir, DBName)}
	db := must[*sql.DB](t)(sql.Open("sqlite3", u.String()))
	defer db.Close()
	must[sql.Result](t)(db.Exec(statement))
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyStore(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, dir string) string {
	t.Helper()
	var names []string
	for _, e := range must[[]os.DirEntry](t)(os.ReadDir(dir)) {
		names = append(names, strings.TrimPrefix(e.Name(), DBName))
	}
	return strings.Join(names, " ")
}

// testKey has the base point of P-256 as its public key: not a key of any TPM.
func testKey() Key {
	p := eccTemplate()
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: basePointX}, Y: tpm2.TPM2BECCParameter{Buffer: basePointY}})
	wrapped, _ := WrapAuth(randomHex(32), []byte("auth"), rand.Reader)
	return Key{Label: "ldevid", ID: []byte{1}, TPM2BPublic: tpm2.Marshal(tpm2.New2B(p)),
		TPM2BPrivate: []byte{0, 3, 1, 2, 3}, WrappedAuth: wrapped}
}
