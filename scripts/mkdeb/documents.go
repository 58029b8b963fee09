package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"

	"github.com/goreleaser/nfpm/v2"
	"go.yaml.in/yaml/v3"
)

// document is what nfpm.yaml says of one package.
type document struct {
	name string
	file string
	node *yaml.Node
}

// variables are what ${NAME} stands for in nfpm.yaml. nfpm's own expansion
// leaves out some fields, and takes a name that it does not know for an empty
// text.
type variables map[string]string

var variable = regexp.MustCompile(`\$\{([^}]*)\}`)

func readDocuments(file string) ([]document, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return splitDocuments(file, data)
}

// splitDocuments exists because nfpm reads the first document only, without a
// word on the others.
func splitDocuments(file string, data []byte) ([]document, error) {
	var documents []document
	seen := map[string]bool{}
	for decoder := yaml.NewDecoder(bytes.NewReader(data)); ; {
		node := new(yaml.Node)
		switch err := decoder.Decode(node); {
		case errors.Is(err, io.EOF):
			return documents, nil
		case err != nil:
			return nil, fmt.Errorf("cannot read %s: %w", file, err)
		}
		d := document{file: file, node: node}
		d.name = d.value("name")
		switch {
		case d.name == "":
			return nil, fmt.Errorf("cannot read %s: document %d has no name", file, len(documents)+1)
		case seen[d.name]:
			return nil, fmt.Errorf("cannot read %s: two documents have the name %s", file, d.name)
		case d.value("arch") != "all" && d.value("arch") != "${arch}":
			return nil, fmt.Errorf("cannot read %s: the arch of %s must be all or ${arch}", file, d.name)
		}
		seen[d.name] = true
		documents = append(documents, d)
	}
}

// value is that of a key on the first level.
func (d document) value(key string) string {
	if d.node.Kind != yaml.DocumentNode || len(d.node.Content) == 0 || d.node.Content[0].Kind != yaml.MappingNode {
		return ""
	}
	pairs := d.node.Content[0].Content
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i].Value == key {
			return pairs[i+1].Value
		}
	}
	return ""
}

// independent tells whether the package is the same for all architectures.
func (d document) independent() bool { return d.value("arch") == "all" }

// builtFor tells whether the program of that name, if the package has one, is
// there for an architecture.
func (d document) builtFor(arch string) bool {
	for _, p := range programs {
		if p.name == d.name {
			return p.builtFor(arch)
		}
	}
	return true
}

// info is the package as nfpm sees it.
func (d document) info(v variables) (*nfpm.Info, error) {
	expanded, err := v.expand(d.node)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", d.file, err)
	}
	data, err := yaml.Marshal(expanded)
	if err != nil {
		return nil, err
	}
	config, err := nfpm.Parse(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	for _, c := range config.Contents {
		// Else it is that of the file in the checkout, which is the umask's.
		if c.Type != "symlink" && (c.FileInfo == nil || c.FileInfo.Mode == 0) {
			return nil, fmt.Errorf("%s: %s has no file_info.mode", d.file, c.Destination)
		}
	}
	info, err := config.Get("deb")
	if err != nil {
		return nil, err
	}
	// The copy shares its contents with config, which nobody else uses.
	return nfpm.WithDefaults(info), nil
}

// expand returns a copy of a node in which no variable is left.
func (v variables) expand(node *yaml.Node) (*yaml.Node, error) {
	expanded := *node
	if node.Kind == yaml.ScalarNode {
		var unknown error
		expanded.Value = variable.ReplaceAllStringFunc(node.Value, func(s string) string {
			value, ok := v[variable.FindStringSubmatch(s)[1]]
			if !ok {
				unknown = fmt.Errorf("%d: %s is not known here", node.Line, s)
			}
			return value
		})
		return &expanded, unknown
	}
	expanded.Content = make([]*yaml.Node, len(node.Content))
	for i, child := range node.Content {
		var err error
		if expanded.Content[i], err = v.expand(child); err != nil {
			return nil, err
		}
	}
	return &expanded, nil
}
