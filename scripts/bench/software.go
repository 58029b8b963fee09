package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// stateFile is where swtpm keeps what survives a reset.
const stateFile = "tpm2-00.permall"

// vendor is a TPM vendor that has made one TPM. Every run gets a copy of it, so
// that all begin with the same seeds and the same certificate.
type vendor struct {
	roots string // directory of its CA certificates, PEM
	der   string // the same as NAME.crt, DER: how vendors publish them
	state string // directory of the TPM's state
}

// manufacture makes a CA and a TPM with its EK certificates in NV, all in dir.
func manufacture(ctx context.Context, dir string) (*vendor, error) {
	v := &vendor{
		roots: filepath.Join(dir, "pem"),
		der:   filepath.Join(dir, "der"),
		state: filepath.Join(dir, "state"),
	}
	for _, d := range []string{v.roots, v.der, v.state} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("cannot make a TPM: %w", err)
		}
	}
	tool, err := lookTool("swtpm_localca")
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "setup.conf")
	for path, text := range map[string]string{
		config: fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %[2]s/ca.conf\n"+
			"create_certs_tool_options = %[2]s/ca.options\nactive_pcr_banks = sha256\n", tool, dir),
		filepath.Join(dir, "ca.conf"): fmt.Sprintf("statedir = %[1]s\nsigningkey = %[1]s/signkey.pem\n"+
			"issuercert = %[1]s/issuercert.pem\ncertserial = %[1]s/certserial\n", dir),
		filepath.Join(dir, "ca.options"): "--platform-manufacturer tpm2cloud\n--platform-version 1.0\n--platform-model bench\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, fmt.Errorf("cannot make a TPM: %w", err)
		}
	}
	args := []string{"--tpm2", "--tpmstate", v.state, "--create-ek-cert", "--config", config}
	if os.Geteuid() == 0 {
		args = append(args, "--runas", "root") // else a user who can't enter dir
	}
	cmd, err := prepare(ctx, "swtpm_setup", args...)
	if err != nil {
		return nil, err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cannot make a TPM: swtpm_setup: %w\n%s", err, out)
	}
	for _, name := range []string{"swtpm-localca-rootca-cert.pem", "issuercert.pem"} {
		if err := v.publish(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("cannot publish a CA certificate of the TPM's vendor: %w", err)
		}
	}
	return v, evictAll(ctx, v.state)
}

// evictAll removes the persistent keys that swtpm_setup leaves and vendors
// don't: an EK at its handle would be half of the work.
func evictAll(ctx context.Context, state string) error {
	s, err := startSoftware(ctx, state, filepath.Join(filepath.Dir(state), "s"))
	if err != nil {
		return err
	}
	defer s.stop()
	tpm, err := linuxudstpm.Open(s.socket)
	if err != nil {
		return fmt.Errorf("cannot open the TPM: %w", err)
	}
	defer tpm.Close()
	const first = 0x81000000
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(tpm)
	if err != nil {
		return fmt.Errorf("cannot list the TPM's keys: %w", err)
	}
	handles, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return fmt.Errorf("cannot list the TPM's keys: %w", err)
	}
	for _, h := range handles.Handle {
		if err := evict(tpm, h); err != nil {
			return fmt.Errorf("cannot evict the key 0x%08X: %w", uint32(h), err)
		}
	}
	return nil
}

func evict(tpm transport.TPM, h tpm2.TPMHandle) error {
	public, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(tpm)
	if err != nil {
		return err
	}
	_, err = tpm2.EvictControl{
		Auth:             tpm2.TPMRHOwner,
		ObjectHandle:     &tpm2.NamedHandle{Handle: h, Name: public.Name},
		PersistentHandle: h,
	}.Execute(tpm)
	return err
}

// software is a running swtpm.
type software struct {
	state, socket string
	process       *background
}

// startSoftware powers a TPM on.
func startSoftware(ctx context.Context, state, socket string) (*software, error) {
	for _, path := range []string{socket, socket + controlSuffix} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("cannot start swtpm: %w", err)
		}
	}
	p, err := start(ctx, filepath.Join(state, "log"), "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state,
		"--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+socket+controlSuffix,
		"--flags", "not-need-init,startup-clear")
	if err != nil {
		return nil, err
	}
	s := &software{state, socket, p}
	// It does not say when it listens.
	if err := p.await(ctx, func() bool {
		c, err := net.Dial("unix", socket)
		if err != nil {
			return false
		}
		c.Close()
		return true
	}); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// stop cuts the power.
func (s *software) stop() { s.process.stop() }

// digest is one of all that survives a reset.
func (s *software) digest() ([sha256.Size]byte, error) {
	data, err := os.ReadFile(filepath.Join(s.state, stateFile))
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("cannot read the TPM's state: %w", err)
	}
	return sha256.Sum256(data), nil
}

// copyState gives a TPM as it left its vendor.
func (v *vendor) copyState(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot copy the TPM: %w", err)
	}
	data, err := os.ReadFile(filepath.Join(v.state, stateFile))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, stateFile), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot copy the TPM: %w", err)
	}
	return nil
}

// publish writes a CA certificate in both forms.
func (v *vendor) publish(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return fmt.Errorf("%s is not PEM", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	name := cert.Subject.CommonName
	return errors.Join(
		os.WriteFile(filepath.Join(v.roots, name+".pem"), pem.EncodeToMemory(block), 0o644),
		os.WriteFile(filepath.Join(v.der, name+".crt"), block.Bytes, 0o644))
}
