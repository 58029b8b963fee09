package systemd

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The catalog has a text for each event, and for nothing else.
func TestCatalog(t *testing.T) {
	data, err := os.ReadFile("../../systemd/tpm2cloud.catalog")
	if err != nil {
		t.Fatal(err)
	}
	entries := map[Event]string{}
	parts := regexp.MustCompile(`(?m)^-- ([0-9a-f]{32})$`).Split(string(data), -1)
	for i, head := range regexp.MustCompile(`(?m)^-- ([0-9a-f]{32})$`).FindAllStringSubmatch(string(data), -1) {
		entries[Event(head[1])] = parts[i+1]
	}
	events := []Event{Ready, NoTPM, NotGenuine, Waiting, ServerRefused, GaveUp, OtherTPM, CannotGoOn}
	for _, e := range events {
		text := entries[e]
		if !strings.Contains(text, "\nSubject: ") || !strings.Contains(text, "\nDefined-By: tpm2cloud\n") {
			t.Errorf("event %s has no whole entry in the catalog: %q", e, text)
		}
	}
	if len(entries) != len(events) {
		t.Errorf("the catalog has %d entries for %d events", len(entries), len(events))
	}
}

// Standard error of a test is no journal, and nothing is sent there.
func TestNoJournal(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "")
	if j := OpenJournal("x"); j != nil || j.Send(Error, GaveUp, "lost", nil) {
		t.Error("a journal was found where there is none")
	}
}

// Flush returns when the journal has taken the message, and not before.
func TestFlush(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	journal, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()
	if err := flush(path, 10*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("nobody has taken the message: %v", err)
	}
	done := make(chan error)
	go func() { done <- flush(path, time.Minute) }()
	buffer := make([]byte, 16)
	for range 2 { // that of the first try, and this one
		if n, err := journal.Read(buffer); err != nil || string(buffer[:n]) != "\n" {
			t.Errorf("%q, %v", buffer[:n], err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
