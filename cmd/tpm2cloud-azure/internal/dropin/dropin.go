// Package dropin writes what devices need to know of a deployment: a file for /etc/tpm2cloud/tpm2cloud.toml.d with the
// keys of [edge]. There is no secret in it.
package dropin

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tpm2cloud/tpm2cloud/pkg/store"
)

// Edge is what the devices are told.
type Edge struct {
	IDScope  string
	Endpoint string // host name where devices register
	// Where operational certificates come from; Server is empty where that is not known here.
	Server, Label string
	// ServerCA is a file on this machine, empty where devices trust the server by their own store.
	ServerCA string
}

// mark is the first line, by which a file is known as one of ours.
const mark = "# Written by tpm2cloud-azure deploy, which writes it anew at its next run."

// DeviceCA is where devices look for the file that ServerCA is a copy of.
func (e Edge) DeviceCA() string { return "/etc/tpm2cloud/" + filepath.Base(e.ServerCA) }

// Text is the content of the file.
func (e Edge) Text() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n# It belongs into /etc/tpm2cloud/tpm2cloud.toml.d of the devices.\n[edge]\nid_scope = %s\nglobal_endpoint = %s\n",
		mark, strconv.Quote(e.IDScope), strconv.Quote("https://"+e.Endpoint))
	if e.Server != "" {
		fmt.Fprintf(&b, "\n[edge.est]\nserver = %s\n", strconv.Quote(e.Server))
		if e.Label != "" {
			fmt.Fprintf(&b, "label = %s\n", strconv.Quote(e.Label))
		}
		if e.ServerCA != "" {
			fmt.Fprintf(&b, "server_ca = %s\n", strconv.Quote(e.DeviceCA()))
		}
	}
	return []byte(b.String())
}

// ErrForeign: what is there was written by somebody else, or by hand.
var ErrForeign = errors.New("it is there, and tpm2cloud-azure has not written it")

// Same tells whether the file is there as it must be. It is false with ErrForeign where it must not be touched.
func Same(path string, text []byte) (bool, error) {
	dir := store.Open(filepath.Dir(path), 0o755)
	defer dir.Close()
	data, err := dir.Read(filepath.Base(path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case bytes.Equal(data, text):
		return true, nil
	case !bytes.HasPrefix(data, []byte(mark+"\n")):
		return false, ErrForeign
	}
	return false, nil
}

// Write writes the file whole.
func Write(path string, text []byte) error {
	dir := store.Open(filepath.Dir(path), 0o755)
	defer dir.Close()
	return dir.Write(filepath.Base(path), text, 0o644)
}
