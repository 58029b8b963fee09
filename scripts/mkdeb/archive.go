package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
)

// writePackage has nfpm write the package, and xz compress it: the compressor
// that nfpm has in it makes programs a fifth larger.
func writePackage(info *nfpm.Info, w io.Writer) error {
	info.Deb.Compression = "none"
	var plain bytes.Buffer
	if err := deb.Default.Package(info, &plain); err != nil {
		return err
	}
	members, err := readArchive(plain.Bytes())
	if err != nil {
		return err
	}
	if len(members) != 3 || members[2].name != "data.tar" {
		return errors.New("nfpm has not written control and data as expected")
	}
	data := &members[2]
	// More threads would cut it into blocks, as many as the machine has processors.
	cmd := exec.Command("xz", "--compress", "--stdout", "--threads=1", "-6")
	cmd.Stdin = bytes.NewReader(data.data)
	if data.data, err = outputOf(cmd); err != nil {
		return err
	}
	data.name += ".xz"
	return writeArchive(w, members)
}

// A member of an ar archive: the container of a package, deb(5).
type member struct {
	name string
	rest string // of the header: time, owner, mode
	data []byte
}

const (
	archiveMagic = "!<arch>\n"
	headerSize   = 60
	headerEnd    = "`\n"
)

func readArchive(data []byte) ([]member, error) {
	bad := errors.New("it is no ar archive")
	rest, ok := bytes.CutPrefix(data, []byte(archiveMagic))
	if !ok {
		return nil, bad
	}
	var members []member
	for len(rest) > 0 {
		if len(rest) < headerSize || string(rest[58:headerSize]) != headerEnd {
			return nil, bad
		}
		header := string(rest[:headerSize])
		size, err := strconv.Atoi(strings.TrimSpace(header[48:58]))
		rest = rest[headerSize:]
		if err != nil || size < 0 || size > len(rest) {
			return nil, bad
		}
		name := strings.TrimSuffix(strings.TrimSpace(header[:16]), "/")
		members = append(members, member{name, header[16:48], rest[:size]})
		// Members begin at even places.
		rest = rest[min(size+size%2, len(rest)):]
	}
	return members, nil
}

func writeArchive(w io.Writer, members []member) error {
	var b bytes.Buffer
	b.WriteString(archiveMagic)
	for _, m := range members {
		fmt.Fprintf(&b, "%-16s%s%-10d%s", m.name, m.rest, len(m.data), headerEnd)
		b.Write(m.data)
		if len(m.data)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}
