package main

import (
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/files"
)

// TestBill checks a bill of material as a reader of SPDX 2.3 would: the fields
// that each part must have, and that each reference leads somewhere.
func TestBill(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "LICENSE"), "Permission is hereby granted, free of charge, to any person obtaining a copy")
	write(t, filepath.Join(dir, "program"), "a program")
	info := &nfpm.Info{Name: "tpm2cloud-ldevid", Version: "1.2", Arch: "armhf", License: "MIT", Overridables: nfpm.Overridables{
		Depends: []string{"tpm2cloud-common (= 1.2)", "a0t64 | a0"},
		Contents: files.Contents{
			{Source: filepath.Join(dir, "program"), Destination: "/usr/bin/program", Type: files.TypeFile},
			{Destination: "/etc/dir", Type: files.TypeDir},
		},
	}}
	b := &builder{release: release{Version: "1.2", Maintainer: "A <a@example.org>", Time: time.Unix(1e9, 0).UTC()}}
	m := modules{golang: "1.26.8", list: []module{{"example.org/m", "v1.0.0", "h1:x", dir}}}
	name := filepath.Join(dir, "x.spdx.json")
	write(t, filepath.Join(dir, "x.deb"), "a package")
	if err := b.writeBill(name, info, m); err != nil {
		t.Fatal(err)
	}
	first := read(t, name)
	if err := b.writeBill(name, info, m); err != nil {
		t.Fatal(err)
	}
	if read(t, name) != first {
		t.Error("a second bill of the same package has other bytes")
	}

	var doc map[string]any
	if err := json.Unmarshal([]byte(first), &doc); err != nil {
		t.Fatal(err)
	}
	must(t, "document", doc, map[string]string{
		"spdxVersion": `^SPDX-2\.3$`, "dataLicense": `^CC0-1\.0$`, "SPDXID": `^SPDXRef-DOCUMENT$`, "name": `.`,
		"documentNamespace": `^https://[^#]+$`,
	})
	created, _ := doc["creationInfo"].(map[string]any)
	must(t, "creationInfo", created, map[string]string{"created": `^2001-09-09T01:46:40Z$`})
	if creators, _ := created["creators"].([]any); len(creators) == 0 {
		t.Error("no creators")
	}
	known := map[string]bool{"SPDXRef-DOCUMENT": true}
	names := map[string]bool{}
	for _, p := range objects(doc["packages"]) {
		must(t, "package", p, map[string]string{
			"SPDXID": `^SPDXRef-[A-Za-z0-9.-]+$`, "name": `.`, "downloadLocation": `.`,
			"licenseConcluded": `.`, "licenseDeclared": `.`, "copyrightText": `.`,
		})
		id := p["SPDXID"].(string)
		if known[id] {
			t.Errorf("%s twice", id)
		}
		known[id], names[p["name"].(string)] = true, true
		for _, ref := range objects(p["externalRefs"]) {
			must(t, id, ref, map[string]string{"referenceCategory": `^PACKAGE-MANAGER$`, "referenceType": `^purl$`, "referenceLocator": `^pkg:[a-z]+/[^ ]+$`})
		}
	}
	for _, want := range []string{"tpm2cloud-ldevid", "std", "example.org/m", "tpm2cloud-common", "a0t64"} {
		if !names[want] {
			t.Errorf("%s is not in it", want)
		}
	}
	fileObjects := objects(doc["files"])
	if len(fileObjects) != 1 {
		t.Fatalf("%d files, want 1", len(fileObjects))
	}
	must(t, "file", fileObjects[0], map[string]string{"SPDXID": `^SPDXRef-`, "fileName": `^\./usr/bin/program$`})
	known[fileObjects[0]["SPDXID"].(string)] = true
	sums := map[any]any{}
	for _, c := range objects(fileObjects[0]["checksums"]) {
		sums[c["algorithm"]] = c["checksumValue"]
	}
	one := sha1.Sum([]byte("a program"))
	if sums["SHA1"] != hex.EncodeToString(one[:]) || sums["SHA256"] == nil {
		t.Errorf("hashes %v", sums)
	}
	described := false
	for _, r := range objects(doc["relationships"]) {
		for _, end := range []string{"spdxElementId", "relatedSpdxElement"} {
			if id, _ := r[end].(string); !known[id] {
				t.Errorf("a relationship of %v, which is not in it", r[end])
			}
		}
		described = described || r["relationshipType"] == "DESCRIBES"
	}
	if !described {
		t.Error("nothing is described")
	}
}

func objects(list any) []map[string]any {
	var result []map[string]any
	all, _ := list.([]any)
	for _, one := range all {
		object, _ := one.(map[string]any)
		result = append(result, object)
	}
	return result
}

func must(t *testing.T, what string, object map[string]any, fields map[string]string) {
	t.Helper()
	for name, pattern := range fields {
		value, _ := object[name].(string)
		if !regexp.MustCompile(pattern).MatchString(value) {
			t.Errorf("%s: %s is %q, want %s", what, name, value, pattern)
		}
	}
}
