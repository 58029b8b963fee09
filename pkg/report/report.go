// Package report makes the bundle that a supporter gets: how the device stands,
// what happened, and how it is configured, without a secret.
//
// # What keeps secrets out
//
// The files with secrets are not among what is collected: no credential, no PIN,
// no key blob, no store of the token. All that is collected goes through a
// [Scrubber], because texts of others repeat what they should not: it blots out
// each secret that this device knows, however it is written, and whatever stands
// in a secret's place in a configuration, known or not.
//
// # Format
//
// A gzipped tar with one folder; report.txt in it lists the rest, and what could
// not be collected, with the reason.
package report

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Bundle is what goes into a report.
type Bundle struct {
	scrub   *Scrubber
	entries []entry
	missing []string
}

type entry struct {
	name string
	data []byte
}

// New is an empty bundle.
func New(scrub *Scrubber) *Bundle { return &Bundle{scrub: scrub} }

// maxEntry bounds one entry, in bytes: the end of a journal tells most.
const maxEntry = 4 << 20

// Add adds an entry, or the reason why there is none.
func (b *Bundle) Add(name string, data []byte, err error) {
	if err != nil {
		b.missing = append(b.missing, fmt.Sprintf("%s: %v", name, err))
		return
	}
	if over := len(data) - maxEntry; over > 0 {
		data = data[over:]
	}
	b.entries = append(b.entries, entry{name, data})
}

// AddConfiguration adds a configuration file, in which a secret may stand whose
// value nobody knows.
func (b *Bundle) AddConfiguration(name string, data []byte, err error) {
	if err == nil {
		data = b.scrub.Configuration(data)
	}
	b.Add(name, data, err)
}

// Write writes the bundle. The folder in it is for who unpacks several.
func (b *Bundle) Write(w io.Writer, folder, head string, now time.Time) error {
	zip := gzip.NewWriter(w)
	out := tar.NewWriter(zip)
	var list strings.Builder
	fmt.Fprintf(&list, "%s\n\nSecrets are blotted out as %s.\n\n", head, blot)
	for _, e := range b.entries {
		fmt.Fprintf(&list, "%s\n", e.name)
	}
	for _, why := range b.missing {
		fmt.Fprintf(&list, "not collected: %s\n", why)
	}
	for _, e := range append([]entry{{"report.txt", []byte(list.String())}}, b.entries...) {
		data := b.scrub.Text(e.data)
		head := tar.Header{Name: folder + "/" + b.scrub.name(e.name), Mode: 0o600, Size: int64(len(data)), ModTime: now, Typeflag: tar.TypeReg}
		if err := out.WriteHeader(&head); err != nil {
			return err
		}
		if _, err := out.Write(data); err != nil {
			return err
		}
	}
	return errors.Join(out.Close(), zip.Close())
}
