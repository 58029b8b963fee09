package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// contender is one way to give a board its identities.
type contender struct {
	name   string
	theirs bool // the reference, for which a second run is an error
	// programs makes a board ready and returns what has to run on it, one
	// after the other.
	programs func(ctx context.Context, b *board) ([]*exec.Cmd, error)
}

//go:embed reference
var referenceScript string

// reference is the predecessor's way, as one script.
func reference(v *vendor, l *lab) contender {
	return contender{"reference", true, func(ctx context.Context, b *board) ([]*exec.Cmd, error) {
		script := filepath.Join(b.dir, "reference")
		if err := os.WriteFile(script, []byte(referenceScript), 0o700); err != nil {
			return nil, fmt.Errorf("cannot prepare the reference: %w", err)
		}
		cmd, err := prepare(ctx, "bash", script)
		if err != nil {
			return nil, err
		}
		cmd.Env = append(slices.Clone(environment), "LC_ALL=C",
			"WORK="+b.root, "TCTI=swtpm:path="+b.root+tpmSocket,
			"MODEL="+boardModel, "SERIAL="+boardSerial, "MAC="+boardMAC,
			"EK_CAS="+v.der,
			"EST_URL="+l.ESTURL, "EST_CA="+l.ServerCA, "EST_USER="+l.Username, "EST_PASSWORD="+l.Password,
			"ID_SCOPE="+l.IDScope)
		return []*exec.Cmd{cmd}, nil
	}}
}

// programs are ours, in their order.
var programs = []string{"tpm2cloud-idevid", "tpm2cloud-ldevid", "tpm2cloud-edgecfg"}

// configuration is what an owner would write: method and key of the LDevID
// are those of the contender.
const configuration = `
[run]
budget = "1m"
[tpm]
device = "unix:%[1]s"
[device]
model = "%[2]s"
serial = "%[3]s"
mac = "%[4]s"
[ek]
trust = ["/ek-roots"]

[idevid]
key = "%[5]s"
[idevid.enroll]
method = "est-ba"
server = "%[6]s"
label = "idevid"
server_ca = "/est-ca.pem"
username = "%[7]s"
password = "/est-password"

[ldevid]
key = "%[5]s"
[ldevid.enroll]
server = "%[6]s"
label = "ldevid"
server_ca = "/est-ca.pem"
%[8]s

[edge]
method = "est-mtls"
id_scope = "%[9]s"
apply = "never"
[edge.est]
server = "%[6]s"
label = "operational"
server_ca = "/est-ca.pem"
`

const (
	withCertificate = `method = "est-mtls"`
	withPassword    = "method = \"est-ba\"\nusername = \"%s\"\npassword = \"/est-password\""
)

// ours is the default of the three programs: P-256, and the LDevID enrolled
// with the IDevID.
func ours(bin string, v *vendor, l *lab) contender {
	return contender{"tpm2cloud", false, func(ctx context.Context, b *board) ([]*exec.Cmd, error) {
		return runPrograms(ctx, b, bin, v, l, "ecc-p256", withCertificate)
	}}
}

// oursRSA is like for like: the reference's keys, and its way to enrol.
func oursRSA(bin string, v *vendor, l *lab) contender {
	return contender{"tpm2cloud, RSA", false, func(ctx context.Context, b *board) ([]*exec.Cmd, error) {
		return runPrograms(ctx, b, bin, v, l, "rsa-2048", fmt.Sprintf(withPassword, l.Username))
	}}
}

func runPrograms(ctx context.Context, b *board, bin string, v *vendor, l *lab, key, enroll string) ([]*exec.Cmd, error) {
	server, err := l.server()
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(l.ServerCA)
	if err != nil {
		return nil, fmt.Errorf("cannot prepare the board: %w", err)
	}
	text := fmt.Sprintf(configuration, tpmSocket, boardModel, boardSerial, boardMAC, key, server, l.Username, enroll, l.IDScope)
	for path, file := range map[string]struct {
		data string
		mode os.FileMode
	}{
		"/etc/tpm2cloud/tpm2cloud.toml": {text, 0o644},
		"/est-ca.pem":                   {string(ca), 0o644},
		"/est-password":                 {l.Password, 0o600},
	} {
		path = filepath.Join(b.root, path)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, []byte(file.data), file.mode)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot prepare the board: %w", err)
		}
	}
	if err := os.CopyFS(filepath.Join(b.root, "ek-roots"), os.DirFS(v.roots)); err != nil {
		return nil, fmt.Errorf("cannot prepare the board: %w", err)
	}
	return again(ctx, b, bin)
}

// again is the run of a board that is configured.
func again(ctx context.Context, b *board, bin string) ([]*exec.Cmd, error) {
	var cmds []*exec.Cmd
	for _, name := range programs {
		cmd, err := prepare(ctx, filepath.Join(bin, name), "--root", b.root)
		if err != nil {
			return nil, err
		}
		cmds = append(cmds, cmd)
	}
	return cmds, nil
}
