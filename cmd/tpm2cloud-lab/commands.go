package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-lab/internal/aziot"
	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-lab/internal/cloud"
)

var commands = []command{
	{
		name: "ca create", args: "DIR",
		help: `Make the certificate authorities in DIR.

For each of idevid, ldevid and operational: NAME-ca.pem (the issuing CA, then its root) and
NAME-ca.key (the issuing CA's key); for the TLS servers: server-ca.pem, server-ca.key, server.pem,
server.key. The enrolment method "ca" can use NAME-ca.pem and NAME-ca.key as they are. It is an
error if DIR has any of them already.
`,
		setup: func(*flag.FlagSet) func(context.Context, []string, io.Writer) error {
			return func(_ context.Context, args []string, stdout io.Writer) error {
				if len(args) != 1 {
					return fmt.Errorf("%w: give one directory", errUsage)
				}
				if err := cloud.Create(args[0]); err != nil {
					return err
				}
				fmt.Fprintln(stdout, "created:", args[0])
				return nil
			}
		},
	},
	{
		name: "serve", args: "--dir DIR [FLAGS]",
		help: `Run the EST server, DPS, the hub and a proxy, on loopback.

What is missing in DIR is made first. When everything listens, it writes DIR/lab.json (addresses,
CA files and credentials; mode 0600) and then prints "listening: DIR/lab.json". The credentials are
kept in DIR/accounts.json. DIR/lab.log gets one line of JSON for each enrolment ("event":"enrol"),
registration ("registration"), CONNECT and other request, also for those refused. SIGTERM ends it.

EST: https://HOST:PORT/.well-known/est/LABEL, with the labels idevid, ldevid and operational.
A client enrols with HTTP Basic, with the header Secret-Value, or over mutual TLS: with an IDevID
for an LDevID, with an LDevID for an operational certificate. Simplereenroll takes the old
certificate only.

Faults, for tests: POST {"label":"ldevid","kind":"202","count":1,"retry_after":"1"} to /fault of
control_url, or give the same JSON to --fault. Label (any), operation (those that enrol), skip (so many
requests pass before), count (0: until cleared) and retry_after may be left out. GET /fault lists,
DELETE /fault clears. Kinds:
` + cloud.FaultHelp() + `
Holds, for tests that cut a device's power: PUT {"at":"answer","nth":2} to /hold of control_url stops
the second exchange with EST before its answer is sent (or at "connection", "request", "half"). GET
/held answers when it is held; GET /hold says how many connections and requests there were since.
`,
		setup: func(fs *flag.FlagSet) func(context.Context, []string, io.Writer) error {
			o := cloud.Options{}
			fs.StringVar(&o.Dir, "dir", "", "`directory` of the lab (required)")
			fs.StringVar(&o.Listen, "listen", "127.0.0.1:0", "`address` of EST; the other listeners take free ports")
			fs.IntVar(&o.LDevIDDays, "ldevid-days", 3650, "`days` that LDevID certificates are valid")
			fs.IntVar(&o.OperationalDays, "operational-days", 90, "`days` that operational certificates are valid")
			fs.Func("fault", "fault to start with, as `JSON`; repeatable", func(s string) error {
				f, err := cloud.ParseFault([]byte(s))
				o.Faults = append(o.Faults, f)
				return err
			})
			return func(ctx context.Context, args []string, stdout io.Writer) error {
				if o.Dir == "" || len(args) != 0 {
					return fmt.Errorf("%w: give --dir and nothing else", errUsage)
				}
				return cloud.Serve(ctx, o, func(path string) {
					fmt.Fprintln(stdout, "listening:", path)
				})
			}
		},
	},
	{
		name: "agent", args: "--config FILE [FLAGS]",
		help: `Provision this device as the Azure IoT Identity Service would.

It reads config.toml, gets the operational certificate over EST (or takes the one that is there),
registers with DPS, lists the modules at the hub, and prints "hub: …" and "device: …". The exit code
is 0 only when the device is assigned. The certificate and keys that are files stay in --state, and
are used again by the next run while they are valid.

The token's store and TPM are those of TPM2_PKCS11_STORE and TPM2_PKCS11_TCTI, in the environment or
in the drop-ins of aziot-keyd that --dropin names. https_proxy is used if it is set.
`,
		setup: func(fs *flag.FlagSet) func(context.Context, []string, io.Writer) error {
			a := aziot.Agent{}
			fs.StringVar(&a.Config, "config", "", "config.toml `file` (required)")
			fs.StringVar(&a.State, "state", "", "`directory` for what the daemons keep (default: state beside the config file)")
			fs.StringVar(&a.SystemCA, "system-ca", "", "PEM `file` of CAs to trust beside the system's store (which is that of SSL_CERT_FILE, if set)")
			fs.DurationVar(&a.Poll, "poll", 5*time.Second, "`time` between two polls of DPS")
			dropinFlag(fs, &a.Dropins)
			return func(ctx context.Context, args []string, stdout io.Writer) error {
				if a.Config == "" || len(args) != 0 {
					return fmt.Errorf("%w: give --config and nothing else", errUsage)
				}
				return aziot.RunAgent(ctx, a, stdout)
			}
		},
	},
	{
		name: "keyd", args: "--root DIR [--dropin FILE]",
		help: `Stand in for aziot-keyd on DIR/run/aziot/keyd.sock.

It answers GET /keypair/ID?api-version=2021-05-01 by looking for the key pair where
DIR/etc/aziot/keyd/config.d/00-super.toml says, in the PKCS#11 token or in a file. It prints
"listening: …" when it does, and why a key could not be loaded to stderr. SIGTERM ends it.
`,
		setup: func(fs *flag.FlagSet) func(context.Context, []string, io.Writer) error {
			root := fs.String("root", "", "root `directory` of the device (required)")
			var dropins []string
			dropinFlag(fs, &dropins)
			return func(ctx context.Context, args []string, stdout io.Writer) error {
				if *root == "" || len(args) != 0 {
					return fmt.Errorf("%w: give --root and nothing else", errUsage)
				}
				return aziot.ServeKeyd(ctx, *root, dropins, os.Stderr, func(path string) {
					fmt.Fprintln(stdout, "listening:", path)
				})
			}
		},
	},
	{
		name: "use", args: "--uri-file FILE --module LIBRARY [FLAGS]",
		help: `Use a key in a PKCS#11 token over and over, as aziot-keyd does, until SIGTERM.

The library is initialised once; each use is a session with a login, and a signature that is verified.
With --own, a key of that label is made anew and used after each use. It prints "in use: …" after
the first use, and at the end {"uses":N,"made":N,"failures":N,"last":"why"}. The token's store and TPM are
those of TPM2_PKCS11_STORE and TPM2_PKCS11_TCTI.
`,
		setup: func(fs *flag.FlagSet) func(context.Context, []string, io.Writer) error {
			file := fs.String("uri-file", "", "`file` with the key's PKCS#11 URI, PIN included (required)")
			module := fs.String("module", "", "PKCS#11 `library` (required)")
			own := fs.String("own", "", "`label` of a key to make")
			pause := fs.Duration("pause", 50*time.Millisecond, "`time` between two uses")
			return func(ctx context.Context, args []string, stdout io.Writer) error {
				if *file == "" || *module == "" || len(args) != 0 {
					return fmt.Errorf("%w: give --uri-file and --module", errUsage)
				}
				data, err := os.ReadFile(*file)
				if err != nil {
					return err
				}
				uri, err := aziot.ParseTokenURI(strings.TrimSpace(string(data)))
				if err != nil {
					return err
				}
				return aziot.Use{URI: uri, Own: *own, Pause: *pause}.Run(ctx, *module, stdout)
			}
		},
	},
}

func dropinFlag(fs *flag.FlagSet, dropins *[]string) {
	fs.Func("dropin", "systemd drop-in `file` of aziot-keyd to take Environment= from; repeatable", func(s string) error {
		*dropins = append(*dropins, s)
		return nil
	})
}

func firstSentence(s string) string {
	first, _, _ := strings.Cut(s, ".\n")
	return first
}
