package enroll

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/tpm2cloud/tpm2cloud/pkg/devid"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// maxFile bounds what is read of a file that the configuration names.
const maxFile = 1 << 20

func (e *Enroller) readCertificates(path string) ([]*x509.Certificate, error) {
	path = e.options.Path(path)
	data, err := readFile(path, 0)
	if err != nil {
		return nil, err
	}
	certs, err := devid.ParsePEM(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs, nil
}

// readFile reads a regular file that has none of the forbidden bits of mode.
func readFile(path string, forbidden fs.FileMode) ([]byte, error) {
	// O_NONBLOCK: a pipe in the file's place must not hold the run.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot read a file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil {
		err = checkFile(info, forbidden)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use the file %s: %w", path, err)
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func checkFile(info fs.FileInfo, forbidden fs.FileMode) error {
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return errors.New("it is not a regular file")
	case mode.Perm()&forbidden != 0:
		return fmt.Errorf("its mode is %04o, which lets others read or change it; allowed: 0600", mode.Perm())
	case info.Size() > maxFile:
		return fmt.Errorf("it has more than %d bytes", maxFile)
	}
	return nil
}

// badFile gives the error of a file that the configuration names its class.
func badFile(hint string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return step.As(step.Permission, "run it as root, or as the user who owns the file", err)
	}
	return step.As(step.Configuration, hint, err)
}
