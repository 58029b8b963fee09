package main

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// A finding is something in an image that must not be cloned ("error"), or
// that everybody with one image has ("warning").
type finding struct {
	Severity string `json:"severity"`
	Path     string `json:"path"`
	What     string `json:"what"`
	Why      string `json:"why"`
	Hint     string `json:"hint"`
}

// A linter looks at one tree. The first error of reading ends all checks: what
// could not be read was not found good.
type linter struct {
	tree     tree
	owner    int // of /etc, and so of what only root may read: a folder may have been unpacked by another user
	listed   map[string][]entry
	settings map[string]string // of the configurations, by dotted keys
	findings []finding
	err      error
}

// check looks for everything in one tree.
func check(t tree) ([]finding, error) {
	l := &linter{tree: t, listed: map[string][]entry{}, settings: map[string]string{}}
	for _, e := range l.list("/") {
		if e.name == "etc" {
			l.owner = e.uid
		}
	}
	l.machineID()
	l.sshKeys()
	l.randomSeeds()
	l.ourState()
	l.aziotState()
	l.secrets()
	l.privateKeys()
	l.leftovers()
	return l.findings, l.err
}

func (l *linter) error(path, what, why, hint string) {
	l.findings = append(l.findings, finding{"error", path, what, why, hint})
}

func (l *linter) warning(path, what, why, hint string) {
	l.findings = append(l.findings, finding{"warning", path, what, why, hint})
}

// --- what is where ------------------------------------------------------------

func (l *linter) list(dir string) []entry {
	if entries, ok := l.listed[dir]; ok || l.err != nil {
		return entries
	}
	entries, err := l.tree.list(dir)
	if err != nil {
		l.err = err
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	l.listed[dir] = entries
	return entries
}

// glob gives what lies in a folder under a name that matches, with its path.
func (l *linter) glob(dir, pattern string) map[string]entry {
	found := map[string]entry{}
	for _, e := range l.list(dir) {
		if ok, _ := path.Match(pattern, e.name); ok { // the patterns are below, and good
			found[path.Join(dir, e.name)] = e
		}
	}
	return found
}

// file gives the file at a path. A link is none: what it leads to has a path.
func (l *linter) file(p string) (entry, bool) {
	e, ok := l.glob(path.Dir(p), path.Base(p))[p]
	return e, ok && e.isFile()
}

// files gives all that is below a folder and no folder itself.
func (l *linter) files(dir string) map[string]entry {
	found := map[string]entry{}
	for p, e := range l.glob(dir, "*") {
		if !e.isDir() {
			found[p] = e
			continue
		}
		for p, e := range l.files(p) {
			found[p] = e
		}
	}
	return found
}

func (l *linter) read(e entry) string {
	if l.err != nil {
		return ""
	}
	data, err := l.tree.read(e)
	if err != nil {
		l.err = err
	}
	return string(data)
}

func sorted[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// --- what makes a machine this one ----------------------------------------------

func (l *linter) machineID() {
	for _, p := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		if e, ok := l.file(p); ok {
			if id := strings.TrimSpace(l.read(e)); id != "" && id != "uninitialized" {
				l.error(p, "a machine id is set", "every board would be the same machine to DHCP, journal and systemd",
					"write \"uninitialized\" to /etc/machine-id, and remove that of dbus")
			}
		}
	}
}

func (l *linter) sshKeys() {
	for _, p := range sorted(l.glob("/etc/ssh", "ssh_host_*_key")) {
		l.error(p, "an SSH host key", "who has one board can pretend to be every other", "remove it; a unit must make new ones at the first boot")
	}
}

// loaderDir is where systemd-boot keeps its seed, on a FAT partition.
const loaderDir = "/boot/loader"

func (l *linter) randomSeeds() {
	for _, p := range []string{
		"/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed", loaderDir + "/random-seed", "/boot/efi/loader/random-seed",
	} {
		if _, ok := l.file(p); ok {
			l.error(p, "a random seed", "all boards would begin with the same randomness", "remove it; each board makes its own")
		}
	}
	for _, p := range []string{"/var/lib/systemd/credential.secret", "/var/lib/NetworkManager/secret_key"} {
		if _, ok := l.file(p); ok {
			l.error(p, "a key that a machine makes for itself", "all boards would have the same one", "remove it; each board makes its own")
		}
	}
}

func (l *linter) ourState() {
	const dir = "/var/lib/tpm2cloud"
	for _, p := range sorted(l.files(dir)) {
		what := "state of a device that was provisioned"
		switch folder, _, _ := strings.Cut(strings.TrimPrefix(p, dir+"/"), "/"); folder {
		case "pins":
			what = "a PIN of a token"
		case "pkcs11":
			what = "a PKCS#11 token, with wrapped keys"
		case "idevid", "ldevid":
			what = "a key, certificate or request of one device's " + map[string]string{"idevid": "IDevID", "ldevid": "LDevID"}[folder]
		}
		l.error(p, what, "it belongs to another TPM than the board's", "remove the files below "+dir)
	}
	for _, p := range sorted(l.files("/var/lib/tpm2cloud-swtpm")) {
		l.error(p, "the state of a software TPM", "all boards would have the same TPM, with the same keys", "remove the files below /var/lib/tpm2cloud-swtpm")
	}
}

func (l *linter) aziotState() {
	for _, p := range sorted(l.files("/var/lib/aziot")) {
		l.error(p, "state of Azure IoT Edge", "it holds an identity, a key or an old hub", "remove the files below /var/lib/aziot")
	}
	const why = "boards would go to the hub of the machine that it was made on, by its name"
	if _, ok := l.file("/etc/aziot/config.toml"); ok {
		l.error("/etc/aziot/config.toml", "the configuration of one device's agent", why, "remove it; tpm2cloud-edgecfg writes it on the board")
	}
	for _, dir := range l.list("/etc/aziot") {
		p := "/etc/aziot/" + dir.name + "/config.d/00-super.toml"
		if _, ok := l.file(p); ok {
			l.error(p, "an applied configuration of one device's agent", why, "remove it; \"iotedge config apply\" writes it on the board")
		}
	}
}

// --- secrets --------------------------------------------------------------------

const (
	etc         = "/etc/tpm2cloud"
	credentials = etc + "/credentials"
	credstore   = "/etc/credstore"
)

// secretKeys are the keys of TOML files whose values are secrets.
var secretKeys = regexp.MustCompile(`(?i)(^|[._-])(pass|password|passwd|passphrase|secret|auth|pin|token|connection_string|(shared_access|symmetric|primary|secondary|account)_key(\.value)?)$`)

// secretName is what the configuration takes for the name of a credential.
var secretName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// secrets looks at the files that hold secrets, and at the configuration for
// what they are for, and for secrets in clear text.
func (l *linter) secrets() {
	uses := map[string]string{} // path of a secret's file: key that names it
	for _, p := range l.configurations() {
		e, ok := l.file(p)
		if !ok {
			continue
		}
		values, err := flatten(l.read(e))
		if err != nil {
			l.warning(p, "it is not TOML: "+err.Error(), "what it holds was not looked at", "correct it")
		}
		for _, key := range sorted(values) {
			l.settings[key] = values[key]
			if secretKeys.MatchString(key) {
				l.clearText(p, e, key, values[key])
			}
		}
	}
	for _, key := range sorted(l.settings) {
		value := l.settings[key]
		switch {
		case value == "" || !secretKeys.MatchString(key):
		case path.IsAbs(value):
			uses[value] = key
		default:
			uses[path.Join(credentials, value)] = key
		}
	}

	found := map[string]entry{}
	for _, dir := range []string{credentials, credstore} {
		if e, ok := l.glob(path.Dir(dir), path.Base(dir))[dir]; ok {
			l.private(dir, e, "a folder of secrets", 0o700)
		}
		for p, e := range l.files(dir) {
			found[p] = e
		}
	}
	for p := range uses {
		if e, ok := l.file(p); ok {
			found[p] = e
		}
	}
	for _, p := range sorted(found) {
		e := found[p]
		if !e.isFile() {
			continue
		}
		l.private(p, e, "a secret", 0o600)
		if !isKey(l.read(e)) { // privateKeys says what a thief has of those
			what, why := worth(uses[p], l.settings)
			l.warning(p, what, why, "give the maker's server an account that can be closed, or bring the secret to each board apart from the image")
		}
	}
}

// private complains about what others than its owner can read.
func (l *linter) private(p string, e entry, what string, most uint32) {
	switch mode := e.mode & 0o7777; {
	case mode&^most != 0:
		l.error(p, fmt.Sprintf("%s with mode %04o", what, mode), "every user and service of a board could read or change it",
			fmt.Sprintf("chmod %04o, owner root", most))
	case e.uid != l.owner:
		l.error(p, fmt.Sprintf("%s that belongs to user %d", what, e.uid), "that user could read or change it", "chown root:root")
	}
}

// clearText complains about a secret that is in a configuration itself.
func (l *linter) clearText(p string, e entry, key, value string) {
	const hint = "write it to a file of mode 0600 in " + credentials + ", and its name here"
	switch {
	case value == "" || path.IsAbs(value):
	case strings.HasPrefix(value, "file://") || strings.HasPrefix(value, "pkcs11:") && !strings.Contains(value, "pin-value="):
	case strings.HasPrefix(p, etc+"/") && secretName.MatchString(value):
		if _, ok := l.file(path.Join(credentials, value)); !ok {
			l.warning(p, fmt.Sprintf("%s names a secret that is not in %s", key, credentials),
				"either the board gets it in another way, or this is the secret itself, open to all", hint)
		}
	case e.mode&0o044 == 0:
		l.warning(p, key+" is a secret in clear text", "every board has it, and so has who reads one image", hint)
	default:
		l.error(p, key+" is a secret in clear text", "every user and service of a board can read it", hint)
	}
}

// configurations lists the TOML files, ours in the order in which they are read.
func (l *linter) configurations() []string {
	paths := []string{etc + "/tpm2cloud.toml"}
	for _, dir := range []string{etc, "/etc/aziot"} {
		for _, p := range sorted(l.files(dir)) {
			if path.Ext(p) == ".toml" && p != paths[0] {
				paths = append(paths, p)
			}
		}
	}
	return paths
}

// flatten gives the strings of a TOML file by their dotted keys.
func flatten(text string) (map[string]string, error) {
	var tables map[string]any
	if err := toml.Unmarshal([]byte(text), &tables); err != nil {
		return nil, err
	}
	values := map[string]string{}
	var walk func(key string, value any)
	walk = func(key string, value any) {
		switch value := value.(type) {
		case map[string]any:
			for name, v := range value {
				walk(strings.TrimPrefix(key+"."+name, "."), v)
			}
		case []any:
			for i, v := range value {
				walk(fmt.Sprintf("%s.%d", key, i), v)
			}
		case string:
			values[key] = value
		}
	}
	walk("", tables)
	return values, nil
}

// worth says what a secret is, and what a thief of the image has with it.
func worth(key string, settings map[string]string) (what, why string) {
	section, _, _ := strings.Cut(key, ".")
	identity := map[string]string{
		"idevid": "manufacturer's identities (IDevID)",
		"ldevid": "owner's identities (LDevID)",
		"edge":   "operational certificates",
	}[section]
	switch {
	case identity != "":
		table := key[:strings.LastIndex(key, ".")]
		what = fmt.Sprintf("the EST password of [%s]", table)
		if strings.HasSuffix(key, ".secret") {
			what = fmt.Sprintf("the EST secret of [%s]", table)
		}
		if user := settings[table+".username"]; user != "" {
			what += fmt.Sprintf(", user %s", user)
		}
		return what, fmt.Sprintf("it is in every board: who reads one image can ask the server for %s of any name", identity)
	case section == "tpm":
		return "the TPM's " + strings.TrimPrefix(key, "tpm."), "it is in every board: who reads one image has that right over the TPM of every board"
	}
	return "a secret", "it is in every board, and so who reads one image has it"
}

// privateKeys looks for keys in PEM, which are CAs' or TLS clients'.
func (l *linter) privateKeys() {
	files := l.files(etc)
	for p, e := range l.files(credstore) {
		files[p] = e
	}
	for _, key := range []string{"idevid.enroll.ca_key", "ldevid.enroll.ca_key"} {
		if e, ok := l.file(path.Clean("/" + l.settings[key])); ok {
			files[l.settings[key]] = e
		}
	}
	for _, p := range sorted(files) {
		e := files[p]
		if !e.isFile() || !isKey(l.read(e)) {
			continue
		}
		if dir := path.Dir(p); e.mode&0o077 != 0 && dir != credentials && dir != credstore { // secrets has looked there
			l.error(p, fmt.Sprintf("a private key with mode %04o", e.mode&0o7777), "every user and service of a board could read it",
				"chmod 0600, chown tpm2cloud")
		}
		what, why := "a private key", "it is in every board, and so who reads one image has it"
		for _, identity := range []string{"idevid", "ldevid"} {
			if l.settings[identity+".enroll.ca_key"] == p {
				what = fmt.Sprintf("the private key of the CA of [%s.enroll]", identity)
				why = "it is in every board: who reads one image can make identities for any device"
			}
		}
		l.warning(p, what, why, "let a server have the key (method est-ba), and keep such images and boards in the factory")
	}
}

func isKey(text string) bool { return strings.Contains(text, "PRIVATE KEY-----") }

// --- traces -----------------------------------------------------------------------

func (l *linter) leftovers() {
	lists := l.files("/var/lib/apt/lists")
	for _, p := range sorted(lists) {
		if e := lists[p]; e.isFile() && e.name != "lock" {
			l.error("/var/lib/apt/lists", "lists of apt, like "+path.Base(p), "they are old when a board boots, and take room in each", "remove the files in it; \"apt-get update\" fetches them")
			break
		}
	}
	homes := []string{"/root"}
	for p, e := range l.glob("/home", "*") {
		if e.isDir() {
			homes = append(homes, p)
		}
	}
	slices.Sort(homes)
	for _, home := range homes {
		for _, p := range sorted(l.glob(home, ".*_history")) {
			l.error(p, "a history of commands", "it may hold passwords, and tells how the image was made", "remove it")
		}
	}
	for _, dir := range []string{"/var/log/journal", "/var/lib/dhcp", "/var/lib/dhcpcd", "/var/lib/dhcpcd5"} {
		for _, p := range sorted(l.files(dir)) {
			l.warning(p, "journal or DHCP lease of the machine that the image was made on", "boards do not need it", "remove the files below "+dir)
		}
	}
}
