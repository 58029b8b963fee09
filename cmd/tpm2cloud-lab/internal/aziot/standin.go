package aziot

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// IsTool tells whether a program name is one of the tools that this program can stand in for.
func IsTool(argv0 string) bool {
	name := filepath.Base(argv0)
	return name == "iotedge" || name == "aziotctl"
}

// RunTool is iotedge or aziotctl, called by that name through a link at ROOT/usr/bin: it works on
// ROOT alone, so that a test can give it a file system to throw away. It returns the exit code, and
// adds a line to ROOT/var/log/iotedge-stand-in.log.
func RunTool(argv []string, stdout, stderr io.Writer) int {
	root, err := toolRoot(argv[0])
	if err == nil {
		err = runTool(filepath.Base(argv[0]), root, argv[1:], stdout)
		err = errors.Join(err, logCall(root, argv, err))
	}
	if err != nil {
		fmt.Fprintf(stderr, "Error: %v\n", err)
		return 1
	}
	return 0
}

// toolRoot is the ROOT of ROOT/usr/bin/iotedge.
func toolRoot(argv0 string) (string, error) {
	path, err := exec.LookPath(argv0)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", fmt.Errorf("cannot find my own link: %w", err)
	}
	root, ok := strings.CutSuffix(filepath.Dir(path), "/usr/bin")
	if !ok {
		return "", fmt.Errorf("cannot tell the root directory: %s is not below usr/bin", path)
	}
	return root + "/", nil
}

func runTool(name, root string, args []string, stdout io.Writer) error {
	switch command := strings.Join(args[:min(2, len(args))], " "); command {
	case "--version":
		fmt.Fprintln(stdout, name, "1.5.21") // of Debian 12's packages
		return nil
	case "config apply":
		fs := flag.NewFlagSet(name, flag.ContinueOnError)
		fs.SetOutput(io.Discard)
		config := filepath.Join(root, "etc/aziot/config.toml")
		fs.StringVar(&config, "c", config, "")
		fs.StringVar(&config, "config-file", config, "")
		if err := fs.Parse(args[2:]); err != nil {
			return err
		}
		if err := Apply(config, root, name); err != nil {
			return err
		}
		fmt.Fprintln(stdout, "The daemons have been configured. (Nothing was started: this is a stand-in.)")
		return nil
	case "system reprovision":
		err := os.Remove(filepath.Join(root, "var/lib/aziot/identityd/device_info"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot reprovision: %w", err)
		}
		return nil
	case "system restart", "system stop":
		return nil
	default:
		return fmt.Errorf("unknown command %q", command)
	}
}

// logCall notes a call and how it ended, in one write.
func logCall(root string, argv []string, result error) error {
	entry := struct {
		Time   time.Time `json:"time"`
		Argv   []string  `json:"argv"`
		Result string    `json:"result"`
	}{time.Now().UTC(), argv, "ok"}
	if result != nil {
		entry.Result = result.Error()
	}
	line, err := json.Marshal(entry)
	if err != nil {
		return err
	}
	path := filepath.Join(root, "var/log/iotedge-stand-in.log")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}
