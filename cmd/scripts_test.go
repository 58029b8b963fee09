package cmd

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tpm2cloud/tpm2cloud/pkg/testkit/powercut"
)

// binaries is where TestMain built the programs.
var binaries string

// buildTags are those of the Makefile.
const buildTags = "libsqlite3,netgo,osusergo,nethttpomithttp2"

func TestMain(m *testing.M) {
	powercut.Launch()
	if file := os.Getenv(envMemory); file != "" {
		os.Exit(measure(file))
	}
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "tpm2cloud-bin")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	binaries = dir
	for _, build := range []struct{ dir, pkg string }{
		{".", "./tpm2cloud-idevid"}, {".", "./tpm2cloud-ldevid"}, {".", "./tpm2cloud-edgecfg"}, {".", "./tpm2cloud"},
		{"tpm2cloud-lab", "."},
	} {
		c := exec.Command("go", "build", "-tags", buildTags, "-o", dir+"/", build.pkg)
		c.Dir = build.dir
		if out, err := c.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("cannot build %s in %s: %w\n%s", build.pkg, build.dir, err, out)
		}
	}
	return m.Run(), nil
}

// TestScripts runs testdata/*/*.txt.
func TestScripts(t *testing.T) {
	dirs, err := filepath.Glob("testdata/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no scripts in testdata (%v)", err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			testscript.Run(t, testscript.Params{
				Dir:                 dir,
				Setup:               setup,
				Cmds:                commands,
				Condition:           condition,
				RequireExplicitExec: true,
			})
		})
	}
}

// setup makes the throw-away root of one script, and its way to the programs.
func setup(env *testscript.Env) error {
	env.Setenv("PATH", binaries+string(os.PathListSeparator)+env.Getenv("PATH"))
	root := filepath.Join(env.WorkDir, "root")
	for _, dir := range []string{"etc/tpm2cloud/tpm2cloud.toml.d", "etc/tpm2cloud/ek-roots", "etc/tpm2cloud/credentials", "run", "lab"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "etc/tpm2cloud/credentials"), 0o700); err != nil {
		return err
	}
	top, err := filepath.Abs("..")
	if err != nil {
		return err
	}
	env.Setenv("TOP", top)
	env.Setenv("R", root)
	env.Setenv("STATE", root+"/var/lib/tpm2cloud")
	env.Setenv("STORE", root+"/var/lib/tpm2cloud/pkcs11")
	env.Setenv("STATE_SAMPLE", cmp.Or(os.Getenv("STATE_SAMPLE"), filepath.Join(env.WorkDir, "sample")))
	w := &world{root: root, config: map[string]any{}}
	env.Values[worldKey{}] = w
	env.Defer(w.end)
	return nil
}

// commands are what a script can do beside testscript's own commands; each
// says in its comment what its arguments are.
var commands = map[string]func(*testscript.TestScript, bool, []string){
	"tpm":       cmdTPM,
	"lab":       cmdLab,
	"set":       cmdSet,
	"run":       cmdRun,
	"cut":       cmdCut,
	"fault":     cmdFault,
	"snapshot":  cmdSnapshot,
	"unchanged": cmdUnchanged,
	"logged":    cmdLogged,
	"secret":    cmdSecret,
	"pkcs11":    cmdPKCS11,
	"mode":      cmdMode,
	"await":     cmdAwait,
	"keyd":      cmdKeyd,
	"expire":    cmdExpire,
	"agent":     cmdAgent,
	"keep":      cmdKeep,
	"sample":    cmdSample,
	"disk":      cmdDisk,
	"clean":     cmdClean,

	"record":      cmdRecord,
	"hierarchies": cmdHierarchies,
	"credential":  cmdCredential,
	"searched":    cmdSearched,
	"sessions":    cmdSessions,
	"example":     cmdExample,
}

// run CODE PROGRAM ARGUMENT... runs a device program, or the operator's, which
// is "tpm2cloud", on the root and demands the exit code.
func cmdRun(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: run CODE PROGRAM ARGUMENT...")
	}
	program := "tpm2cloud-" + args[1]
	if args[1] == "tpm2cloud" {
		program = args[1]
	}
	w := theWorld(ts)
	watched := func() error { return nil }
	if w.recording != nil {
		watched = w.recording.during(ts.Getenv("STATE"))
	}
	err := ts.Exec(program, append([]string{"--root", ts.Getenv("R")}, args[2:]...)...)
	code := "0"
	if exit, ok := err.(*exec.ExitError); ok {
		code = fmt.Sprint(exit.ExitCode())
	} else if err != nil {
		code = err.Error()
	}
	stderr := ts.ReadFile("stderr")
	ts.Check(watched())
	if w.recording != nil {
		w.recording.said.WriteString(ts.ReadFile("stdout") + stderr)
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s", code, args[0])
	}
	// What every failure owes to a technician, and to nobody else.
	// 1 is the answer to a question.
	if code != "0" && code != "1" && !strings.Contains(stderr, "error: ") {
		ts.Fatalf("exit code %s without an error line", code)
	}
	if strings.Contains(stderr, "panic:") || strings.Contains(stderr, "goroutine ") {
		ts.Fatalf("the program panicked")
	}
	for _, secret := range w.secrets() {
		if strings.Contains(stderr+ts.ReadFile("stdout"), secret) {
			ts.Fatalf("a secret stands in the output")
		}
	}
}

// logged N PATTERN demands that N lines of the lab's log hold all the words of
// the pattern.
func cmdLogged(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: logged N WORD...")
	}
	n := 0
	for line := range bytes.Lines(theWorld(ts).log(ts)) {
		all := true
		for _, word := range args[1:] {
			all = all && bytes.Contains(line, []byte(word))
		}
		if all {
			n++
		}
	}
	if fmt.Sprint(n) != args[0] {
		ts.Fatalf("the lab logged %d such lines, want %s; its log:\n%s", n, args[0], theWorld(ts).log(ts))
	}
}

// mode FILE MODE demands a file's permissions.
func cmdMode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode FILE MODE")
	}
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	got := fmt.Sprintf("%#o", info.Mode().Perm())
	if info.Mode()&os.ModeSetgid != 0 {
		got = fmt.Sprintf("02%03o", info.Mode().Perm())
	}
	if got != args[1] {
		ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
	}
}

// await FILE [PATTERN] waits until a file is there, or until it holds a match: for
// what a program in the background has come to.
func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: await FILE [PATTERN]")
	}
	pattern, err := regexp.Compile(strings.Join(args[1:], ""))
	ts.Check(err)
	file := ts.MkAbs(args[0])
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		data, err := os.ReadFile(file)
		if err == nil && pattern.Match(data) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s has not come to hold %q: %v\n%s", file, pattern, err, data)
		}
	}
}
