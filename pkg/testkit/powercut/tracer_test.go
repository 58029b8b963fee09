//go:build amd64 || arm64

package powercut

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestMain(m *testing.M) {
	Launch()
	if name, ok := os.LookupEnv("POWERCUT_TEST_WRITER"); ok {
		writer(name)
	}
	os.Exit(m.Run())
}

// writer writes a file as it should be done, from another thread than the
// first, and something outside of the root.
func writer(name string) {
	done := make(chan error)
	go func() {
		err := os.WriteFile(name+".outside", []byte("x"), 0o600)
		if err == nil {
			err = os.WriteFile(name+"/new", []byte("2"), 0o600)
		}
		for _, sync := range []string{"new", "."} {
			f, oerr := os.Open(filepath.Join(name, sync))
			if err == nil {
				err = oerr
			}
			if err == nil {
				err = f.Sync()
			}
			if sync == "new" && err == nil {
				err = os.Rename(filepath.Join(name, "new"), filepath.Join(name, "file"))
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A program is killed at each of its operations, before it or after it, and
// the disk is what it must be then.
func TestProgram(t *testing.T) {
	want := []string{"openat new", "write new", "fsync new", "renameat file", "fsync ."}
	// What is on the kept and on the strict disk before each of them, and at the end.
	kept := []string{"file=1", "file=1 new=", "file=1 new=2", "file=1 new=2", "file=2", "file=2"}
	strict := []string{"file=1", "file=1", "file=1", "file=1", "file=1", "file=2"}
	for at := 0; at <= len(want); at++ {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d %v", at, after), func(t *testing.T) {
				root := filepath.Join(t.TempDir(), "r")
				p := traced(t, root, "")
				p.Cut = Point{At: at, After: after}
				status := end(t, p)
				reached := len(want)
				if at > 0 {
					reached = at - 1
					if after {
						reached = at
					}
					if !status.Signaled() || status.Signal() != syscall.SIGKILL {
						t.Fatalf("it was not killed: %#x", status)
					}
				} else if !status.Exited() || status.ExitStatus() != 0 {
					t.Fatalf("it ended with %#x", status)
				}
				var have []string
				for _, o := range p.Operations {
					have = append(have, strings.Replace(o.String(), "renameat2", "renameat", 1))
				}
				begun := want[:max(reached, at)]
				if strings.Join(have, ",") != strings.Join(begun, ",") {
					t.Errorf("operations %q, want %q", have, begun)
				}
				now, err := p.Disk.Kept()
				if err != nil {
					t.Fatal(err)
				}
				if said(now) != kept[reached] || said(p.Disk.Strict()) != strict[reached] {
					t.Errorf("the disk has %q and for certain %q, want %q and %q", said(now), said(p.Disk.Strict()), kept[reached], strict[reached])
				}
			})
		}
	}
}

// What a program starts is counted and killed with it.
func TestChildren(t *testing.T) {
	root := filepath.Join(t.TempDir(), "r")
	p := traced(t, root, "/bin/sh -c 'echo 2 >new'; echo 3 >never")
	p.Cut = Point{At: 2} // the child's write
	if status := end(t, p); !status.Signaled() {
		t.Errorf("it ended with %#x", status)
	}
	if now, err := p.Disk.Kept(); err != nil || said(now) != "file=1 new=" {
		t.Errorf("the disk has %q, %v", said(now), err)
	}
}

// A call that would make everything last is not followed, and said to be.
func TestNotFollowed(t *testing.T) {
	p := traced(t, filepath.Join(t.TempDir(), "r"), "/bin/sync")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err == nil || !strings.Contains(err.Error(), "sync") {
		t.Errorf("%v", err)
	}
}

// traced is a writer, or a shell with a script, on a disk with one file.
func traced(t *testing.T, root, script string) *Program {
	t.Helper()
	if err := Refused(); err != nil {
		t.Skipf("this system lets no program be traced: %v", err)
	}
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "file"), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	disk, err := NewDisk(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(disk.Close)
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { output.Close() })
	p := &Program{Output: output, Root: root, Disk: disk, Env: os.Environ()}
	if script != "" {
		p.Args = []string{"/bin/sh", "-c", "cd " + root + "; " + script}
		return p
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.Args = []string{self}
	p.Env = append(p.Env, "POWERCUT_TEST_WRITER="+root)
	return p
}

func end(t *testing.T, p *Program) syscall.WaitStatus {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	status, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return status
}
