//go:build amd64 || arm64

package cmd

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/powercut"
	"github.com/tpm2cloud/tpm2cloud/pkg/token"
	"github.com/tpm2cloud/tpm2cloud/pkg/tpm"
)

// chip is what a stranger sees of a TPM.
type chip struct {
	keys     map[tpm2.TPMHandle]*tpm2.TPMTPublic
	names    map[tpm2.TPMHandle]string
	indices  map[tpm2.TPMHandle]tpm2.TPMANV
	idevid   []byte // what is in the index of the IDevID certificate
	leftover int    // transient objects and loaded sessions
}

// look reads the TPM; no program may use it meanwhile.
func (b *rig) look() (*chip, error) {
	t, err := linuxudstpm.Open(b.tpm.Socket)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	c := &chip{keys: map[tpm2.TPMHandle]*tpm2.TPMTPublic{}, names: map[tpm2.TPMHandle]string{}, indices: map[tpm2.TPMHandle]tpm2.TPMANV{}}
	for _, first := range []tpm2.TPMHandle{0x80000000, 0x02000000} {
		list, err := handles(t, first)
		if err != nil {
			return nil, err
		}
		c.leftover += len(list)
	}
	keys, err := handles(t, 0x81000000)
	if err != nil {
		return nil, err
	}
	for _, handle := range keys {
		rsp, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(t)
		if err != nil {
			return nil, err
		}
		if c.keys[handle], err = rsp.OutPublic.Contents(); err != nil {
			return nil, err
		}
		c.names[handle] = string(rsp.Name.Buffer)
	}
	indices, err := handles(t, 0x01000000)
	if err != nil {
		return nil, err
	}
	for _, index := range indices {
		rsp, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t)
		if err != nil {
			return nil, err
		}
		public, err := rsp.NVPublic.Contents()
		if err != nil {
			return nil, err
		}
		c.indices[index] = public.Attributes
	}
	if c.indices[tpm.IndexIDevID].Written {
		reader := tpm.New(t, tpm.Secrets{})
		index, err := reader.Index(tpm.IndexIDevID)
		if err != nil {
			return nil, err
		}
		if c.idevid, err = reader.Read(index); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// template is a key's public area without the key.
func template(p *tpm2.TPMTPublic) string {
	t := *p
	empty := tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	if t.Type == tpm2.TPMAlgRSA {
		empty = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	}
	t.Unique = empty
	return string(tpm2.Marshal(t))
}

// same demands that a TPM has what another one has, which went the same way:
// the same handles and indices, keys of the same templates, attributes; and
// nothing else.
func (c *chip) same(golden *chip) error {
	var wrong []error
	if have, want := slices.Sorted(maps.Keys(c.keys)), slices.Sorted(maps.Keys(golden.keys)); !slices.Equal(have, want) {
		wrong = append(wrong, fmt.Errorf("persistent keys are %x, want %x", have, want))
	}
	for handle, key := range c.keys {
		if other := golden.keys[handle]; other != nil && template(key) != template(other) {
			wrong = append(wrong, fmt.Errorf("the key at %#x is of another template", uint32(handle)))
		}
	}
	if !maps.Equal(c.indices, golden.indices) {
		wrong = append(wrong, fmt.Errorf("NV indices are %v, want %v", c.indices, golden.indices))
	}
	if c.leftover != 0 {
		wrong = append(wrong, fmt.Errorf("%d transient objects or sessions are left", c.leftover))
	}
	return errors.Join(wrong...)
}

// keeps demands that every key that was persistent at an earlier time is the
// same one still.
func (c *chip) keeps(earlier *chip) error {
	var wrong []error
	for handle, name := range earlier.names {
		if c.names[handle] != name {
			wrong = append(wrong, fmt.Errorf("the key at %#x is another one than after the cut", uint32(handle)))
		}
	}
	return errors.Join(wrong...)
}

// identities demands that every certificate is for the key that is there, and
// by its CA, and that the token holds that key alone.
func (b *rig) identities(c *chip, disk powercut.Image) error {
	var wrong []error
	if c.keys[tpm.HandleIDevID] != nil {
		leaf, err := b.certified(disk, "idevid", c.keys[tpm.HandleIDevID])
		if err == nil && !bytes.Equal(leaf.Raw, c.idevid) {
			err = errors.New("what is in NV is not the IDevID certificate that is on disk")
		}
		if attributes := c.indices[tpm.IndexIDevID]; err == nil && !(attributes.WriteLocked && attributes.WriteDefine) {
			err = errors.New("the IDevID certificate is not locked")
		}
		wrong = append(wrong, err)
	}
	if c.keys[tpm.HandleLDevID] != nil {
		_, err := b.certified(disk, "ldevid", c.keys[tpm.HandleLDevID])
		wrong = append(wrong, err, b.linked(c.names[tpm.HandleLDevID]))
	}
	return errors.Join(wrong...)
}

// certified is the certificate of an identity, which a stranger accepts for
// the key.
func (b *rig) certified(disk powercut.Image, id string, key *tpm2.TPMTPublic) (*x509.Certificate, error) {
	roots, inner := x509.NewCertPool(), x509.NewCertPool()
	ca, err := os.ReadFile(b.addresses[id+"_ca"])
	if err != nil {
		return nil, err
	}
	roots.AppendCertsFromPEM(ca)
	block, rest := pem.Decode([]byte(disk["var/lib/tpm2cloud/"+id+"/certificate.pem"].Data))
	if block == nil {
		return nil, fmt.Errorf("no certificate of the %s", id)
	}
	inner.AppendCertsFromPEM(rest)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the certificate of the %s: %w", id, err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inner, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, fmt.Errorf("the certificate of the %s: %w", id, err)
	}
	public, err := tpm2.Pub(*key)
	if err != nil {
		return nil, err
	}
	if !devid.SameKey(public, leaf.PublicKey) {
		return nil, fmt.Errorf("the certificate of the %s is for another key than that in the TPM", id)
	}
	return leaf, nil
}

// linked demands that the store has one token, and that this has one key: the
// one of that name.
func (b *rig) linked(name string) error {
	st, err := token.OpenStore(filepath.Join(b.root, "var/lib/tpm2cloud/pkcs11"), token.ReadOnly)
	if err != nil {
		return err
	}
	defer st.Close()
	labels, err := st.Labels()
	if err != nil {
		return err
	}
	if !slices.Equal(labels, []string{"edge"}) {
		return fmt.Errorf("the store has the tokens %q, want one", labels)
	}
	t, err := st.Token("edge")
	if err != nil {
		return err
	}
	keys, err := st.Keys(t.ID, "")
	if err != nil {
		return err
	}
	if len(keys) != 1 || keys[0].Rows != token.BothRows {
		return fmt.Errorf("the token has %d keys, want one pair", len(keys))
	}
	blob, err := tpm2.Unmarshal[tpm2.TPM2BPublic](keys[0].TPM2BPublic)
	if err != nil {
		return err
	}
	area, err := blob.Contents()
	if err != nil {
		return err
	}
	have, err := tpm2.ObjectName(area)
	if err != nil {
		return err
	}
	if string(have.Buffer) != name {
		return errors.New("the key in the token is another one than that at its handle")
	}
	return nil
}

// signs has pkcs11-tool sign with the LDevID, and openssl verify it: strangers,
// as the agent is one.
func (b *rig) signs(disk powercut.Image) error {
	at := func(name string) string { return filepath.Join(b.dir, name) }
	block, _ := pem.Decode([]byte(disk["var/lib/tpm2cloud/ldevid/certificate.pem"].Data))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(leaf.PublicKey)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"message": []byte("signed by the LDevID"),
		"public": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})} {
		if err := os.WriteFile(at(name), data, 0o600); err != nil {
			return err
		}
	}
	mechanism := []string{"--mechanism", "ECDSA-SHA256", "--signature-format", "openssl"}
	if leaf.PublicKeyAlgorithm == x509.RSA {
		mechanism = []string{"--mechanism", "SHA256-RSA-PKCS"}
	}
	tool := exec.Command("pkcs11-tool", append([]string{"--module", pkcs11Module(), "--token-label", "edge", "--login",
		"--pin", disk["var/lib/tpm2cloud/pins/user-pin"].Data, "--sign", "--label", "ldevid",
		"--input-file", at("message"), "--output-file", at("signature")}, mechanism...)...)
	tool.Env = append(os.Environ(), "TPM2_PKCS11_STORE="+filepath.Join(b.root, "var/lib/tpm2cloud/pkcs11"), "TPM2_PKCS11_TCTI="+b.tpm.TCTI())
	verify := exec.Command("openssl", "dgst", "-sha256", "-verify", at("public"), "-signature", at("signature"), at("message"))
	for _, c := range []*exec.Cmd{tool, verify} {
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", c.Args[0], err, out)
		}
	}
	return nil
}

// lines is a difference of two texts, line by line.
func lines(have, want string) string {
	var b strings.Builder
	h, w := strings.Split(have, "\n"), strings.Split(want, "\n")
	for _, l := range h {
		if !slices.Contains(w, l) {
			fmt.Fprintf(&b, "  only now:     %s\n", l)
		}
	}
	for _, l := range w {
		if !slices.Contains(h, l) {
			fmt.Fprintf(&b, "  only without: %s\n", l)
		}
	}
	return b.String()
}
