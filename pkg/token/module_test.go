package token

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm2cloud/tpm2cloud/pkg/config"
)

const (
	label   = "edge"
	soPIN   = "so-pin-of-the-test"
	userPIN = "user-pin-of-the-test"
)

// The tests of this package are serial: the C library has one state a process.

func modulePath(t *testing.T) string {
	t.Helper()
	path, found := config.Default().Module()
	if !found {
		t.Fatalf("no %s on this machine: scripts/deps installs it", path)
	}
	return path
}

// device is a TPM with a storage key and a directory for the store.
type device struct {
	*testTPM
	t       *testing.T
	store   string
	module  string
	srkName []byte
}

func newDevice(t *testing.T) *device {
	t.Helper()
	d := &device{t: t, module: modulePath(t), testTPM: newTPM(t), store: t.TempDir()}
	d.srkName = d.makeSRK(tpm2.ECCSRKTemplate)
	return d
}

func (d *device) options() Options {
	return Options{Path: d.module, Store: d.store, TCTI: d.tcti()}
}

// do opens the module for f.
func (d *device) do(f func(*Module)) {
	d.t.Helper()
	m := must[*Module](d.t)(Open(d.options()))
	defer func() {
		if err := m.Close(); err != nil {
			d.t.Error(err)
		}
	}()
	f(m)
}

func (d *device) open(mode Mode) *Store {
	d.t.Helper()
	s := must[*Store](d.t)(OpenStore(d.store, mode))
	d.t.Cleanup(func() { s.Close() })
	return s
}

func (d *device) initToken() {
	d.t.Helper()
	d.do(func(m *Module) {
		if err := m.makeToken(label, soPIN, userPIN); err != nil {
			d.t.Fatal(err)
		}
	})
}

// reseal replaces the library's seals by some without DA protection, and returns the
// wrapping key.
func (d *device) reseal() []byte {
	d.t.Helper()
	s := d.open(ReadWrite)
	defer s.Close()
	tok := must[*Token](d.t)(s.Token(label))
	if err := tok.Primary.Check(uint32(srkHandle), d.srkName); err != nil {
		d.t.Fatal(err)
	}
	old := tok.Seals
	wrapping := d.unseal(old.UserPublic, old.UserPrivate, SealAuth(userPIN, old.UserSalt))
	if so := d.unseal(old.SOPublic, old.SOPrivate, SealAuth(soPIN, old.SOSalt)); !bytes.Equal(so, wrapping) {
		d.t.Fatal("SO and user seal hold different keys")
	}
	seals := old
	seals.UserPublic, seals.UserPrivate = d.create(sealTemplate(), SealAuth(userPIN, old.UserSalt), wrapping)
	seals.SOPublic, seals.SOPrivate = d.create(sealTemplate(), SealAuth(soPIN, old.SOSalt), wrapping)
	if err := s.ReplaceSeals(tok.ID, old, seals); err != nil {
		d.t.Fatal(err)
	}
	if err := s.ReplaceSeals(tok.ID, old, seals); !errors.Is(err, ErrSealsChanged) {
		d.t.Fatalf("replacing the old seals again: %v", err)
	}
	return wrapping
}

// link makes a TPM key and its rows.
func (d *device) link(keyLabel string, id []byte, template tpm2.TPMTPublic, wrapping []byte) (k Key, auth []byte) {
	d.t.Helper()
	auth = randomHex(16)
	k = Key{Label: keyLabel, ID: id}
	k.TPM2BPublic, k.TPM2BPrivate = d.create(template, auth, nil)
	k.WrappedAuth = must[string](d.t)(WrapAuth(wrapping, auth, rand.Reader))
	s := d.open(ReadWrite)
	defer s.Close()
	tok := must[*Token](d.t)(s.Token(label))
	if err := s.AddKey(tok.ID, k); err != nil {
		d.t.Fatal(err)
	}
	if err := s.AddKey(tok.ID, k); !errors.Is(err, ErrKeyExists) {
		d.t.Fatalf("adding the key again: %v", err)
	}
	return k, auth
}

// run is a stranger: a program that reads what this package wrote.
func (d *device) run(name string, args ...string) string {
	d.t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		d.t.Fatalf("%v: scripts/deps installs it", err)
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "TPM2_PKCS11_STORE="+d.store, "TPM2_PKCS11_TCTI="+d.tcti(), "TSS2_LOG=all+NONE",
		"TPM2TOOLS_TCTI="+d.tcti())
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestWholePath(t *testing.T) {
	for _, tt := range []struct {
		name      string
		template  tpm2.TPMTPublic
		mechanism string
		verify    []string
	}{
		{"ecc", eccTemplate(), "ECDSA-SHA256", nil},
		{"rsa", rsaTemplate(), "SHA256-RSA-PKCS", nil},
		{"rsa-pss", rsaTemplate(), "SHA256-RSA-PKCS-PSS", []string{"-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDevice(t)
			d.initToken()
			wrapping := d.reseal()
			id := []byte{0x4c, 0x44, 0x01}
			made, auth := d.link("ldevid", id, tt.template, wrapping)

			s := d.open(ReadOnly)
			tok := must[*Token](t)(s.Token(label))
			keys := must[[]Key](t)(s.Keys(tok.ID, "ldevid"))
			if len(keys) != 1 || keys[0].Rows != BothRows || keys[0].Public == nil ||
				keys[0].WrappedAuth != made.WrappedAuth ||
				!bytes.Equal(keys[0].TPM2BPrivate, made.TPM2BPrivate) || !bytes.Equal(keys[0].TPM2BPublic, made.TPM2BPublic) {
				t.Fatalf("keys read back: %+v", keys)
			}
			s.Close()

			// The strangers.
			out := filepath.Join(t.TempDir(), "sig")
			data := filepath.Join(t.TempDir(), "data")
			pub := filepath.Join(t.TempDir(), "pub.pem")
			os.WriteFile(data, []byte("the quick brown fox"), 0o600)
			der := must[[]byte](t)(x509.MarshalPKIXPublicKey(keys[0].Public))
			os.WriteFile(pub, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600)
			args := []string{"--module", d.module, "--token-label", label, "--login", "--pin", userPIN,
				"--sign", "--id", fmt.Sprintf("%x", id), "-m", tt.mechanism, "-i", data, "-o", out}
			if tt.name == "ecc" {
				args = append(args, "-f", "openssl")
			}
			d.run("pkcs11-tool", args...)
			d.run("openssl", append(append([]string{"dgst", "-sha256", "-verify", pub, "-signature", out}, tt.verify...), data)...)
			d.flushFirst.Store(true)
			list := d.run("tpm2_ptool", "listobjects", "--label", label, "--path", d.store)
			if !strings.Contains(list, "CKA_LABEL: ldevid") {
				t.Errorf("tpm2_ptool listobjects:\n%s", list)
			}
			verified := d.run("tpm2_ptool", "verify", "--label", label, "--sopin", soPIN, "--userpin", userPIN, "--path", d.store)
			for _, want := range [][]byte{auth, SealAuth(userPIN, tok.Seals.UserSalt), SealAuth(soPIN, tok.Seals.SOSalt)} {
				if !strings.Contains(verified, string(want)) {
					t.Errorf("tpm2_ptool verify finds other auth values:\n%s", verified)
				}
			}
			d.flushFirst.Store(false)

			d.do(func(m *Module) {
				var signer *Signer
				d.count("Signer", func() { signer = must[*Signer](t)(m.Signer(label, userPIN, "ldevid", id)) })
				if !keys[0].Public.(interface{ Equal(crypto.PublicKey) bool }).Equal(signer.Public()) {
					t.Fatal("the module has another public key")
				}
				csr := must[[]byte](t)(x509.CreateCertificateRequest(rand.Reader,
					&x509.CertificateRequest{Subject: pkix.Name{CommonName: "device"}}, signer))
				if err := must[*x509.CertificateRequest](t)(x509.ParseCertificateRequest(csr)).CheckSignature(); err != nil {
					t.Error(err)
				}
				d.count("first Sign", func() { signDigest(t, signer) })
				d.count("next Sign", func() { signDigest(t, signer) })
				for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
					handshake(t, signer, version)
				}
				if _, err := m.Signer(label, userPIN, "ldevid", nil); err == nil {
					t.Error("a second Signer of the token was given")
				}
				if err := signer.Close(); err != nil {
					t.Error(err)
				}
				if _, err := signer.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); !errors.Is(err, ErrClosed) {
					t.Errorf("Sign after Close: %v", err)
				}
				// And again, without an ID.
				signer = must[*Signer](t)(m.Signer(label, userPIN, "ldevid", nil))
				signDigest(t, signer)
				d.count("Close", func() { m.Close() })
			})
			if n := d.lockoutCounter(); n != 0 {
				t.Errorf("lockout counter is %d", n)
			}

			w := d.open(ReadWrite)
			if err := w.RemoveKey(tok.ID, "ldevid"); err != nil {
				t.Fatal(err)
			}
			if err := w.RemoveKey(tok.ID, "ldevid"); !errors.Is(err, ErrNoKey) {
				t.Errorf("removing again: %v", err)
			}
			w.Close()
			d.do(func(m *Module) {
				if _, err := m.Signer(label, userPIN, "ldevid", nil); !errors.Is(err, ErrNoKey) {
					t.Errorf("Signer of a removed key: %v", err)
				}
			})
		})
	}
}

func TestModule(t *testing.T) {
	d := newDevice(t)
	t.Setenv("TPM2_PKCS11_STORE", "/somewhere/else")

	var m *Module
	d.count("Open", func() { m = must[*Module](t)(Open(d.options())) })
	if _, err := Open(d.options()); !errors.Is(err, ErrModuleOpen) {
		t.Errorf("second Open: %v", err)
	}
	if _, err := m.Signer(label, userPIN, "x", nil); !errors.Is(err, ErrNoToken) {
		t.Errorf("Signer without a token: %v", err)
	}
	d.count("C_InitToken", func() {
		if err := m.initToken(label, soPIN); err != nil {
			t.Fatal(err)
		}
	})
	// The cut between the two steps.
	if err := m.CheckPIN(label, userPIN); !errors.Is(err, ErrPINNotInitialized) {
		t.Errorf("CheckPIN before InitPIN: %v", err)
	}
	if err := m.makeToken(label, soPIN, userPIN); !errors.Is(err, ErrTokenExists) {
		t.Errorf("InitToken again: %v", err)
	}
	d.count("InitPIN", func() {
		if err := m.InitPIN(label, soPIN, userPIN); err != nil {
			t.Fatal(err)
		}
	})
	d.count("CheckPIN", func() {
		if err := m.CheckPIN(label, userPIN); err != nil {
			t.Fatal(err)
		}
	})
	err := m.CheckPIN(label, "not the PIN")
	if !errors.Is(err, ErrPINIncorrect) || errors.Is(err, ErrPINLocked) {
		t.Errorf("wrong PIN: %v", err)
	}
	if want := `cannot log in to token "edge": CKR_PIN_INCORRECT`; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if err := m.CheckPIN(label, userPIN); err != nil {
		t.Errorf("right PIN after a wrong one: %v", err)
	}
	if err := m.makeToken("second", soPIN, userPIN); err != nil {
		t.Errorf("second token: %v", err)
	}
	if err := m.CheckPIN(label, userPIN); err != nil {
		t.Errorf("first token after the second was made: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := m.CheckPIN(label, userPIN); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if got := os.Getenv("TPM2_PKCS11_STORE"); got != "/somewhere/else" {
		t.Errorf("TPM2_PKCS11_STORE is %q after Close", got)
	}
	if n := d.lockoutCounter(); n != 1 {
		t.Errorf("lockout counter is %d after one wrong PIN", n)
	}

	// Open, use and close in the same process, over and over.
	for range 5 {
		d.do(func(m *Module) {
			if err := m.CheckPIN(label, userPIN); err != nil {
				t.Fatal(err)
			}
		})
	}
	if got := must[[]string](t)(d.open(ReadOnly).Labels()); len(got) != 2 || got[0] != label || got[1] != "second" {
		t.Errorf("labels %q", got)
	}
}

func TestOpenRefuses(t *testing.T) {
	module := modulePath(t)
	dir := t.TempDir()
	if _, err := Open(Options{Path: filepath.Join(dir, "none.so"), Store: dir}); !errors.Is(err, ErrNoModule) {
		t.Errorf("no module: %v", err)
	}
	if _, err := Open(Options{Path: module, Store: filepath.Join(dir, "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := Open(Options{Path: module, Store: dir, TCTI: "swtpm:path=" + dir + "/none"}); err == nil {
		t.Error("opened without a TPM")
	} else {
		t.Log(err)
	}
	for _, l := range []string{"", " x", "x ", "123456789012345678901234567890123", "a\x00b"} {
		if err := checkLabel(l); err == nil {
			t.Errorf("label %q accepted", l)
		}
	}
}

// A token that was made before the TPM was cleared.
func TestOtherParent(t *testing.T) {
	d := newDevice(t)
	d.initToken()
	other := newTPM(t)
	name := other.makeSRK(tpm2.ECCSRKTemplate)
	s := d.open(ReadOnly)
	tok := must[*Token](t)(s.Token(label))
	if err := tok.Primary.Check(uint32(srkHandle), name); !errors.Is(err, ErrOtherParent) {
		t.Errorf("Check: %v", err)
	}
	primaries := must[[]Primary](t)(s.Primaries())
	if len(primaries) != 1 || primaries[0].Check(uint32(srkHandle), d.srkName) != nil {
		t.Errorf("primaries: %+v", primaries)
	}
	m := must[*Module](t)(Open(Options{Path: d.module, Store: d.store, TCTI: other.tcti()}))
	defer m.Close()
	err := m.CheckPIN(label, userPIN)
	t.Log(err)
	if _, ok := errors.AsType[*Error](err); !ok {
		t.Errorf("CheckPIN on another TPM: %v", err)
	}
}
