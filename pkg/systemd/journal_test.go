package systemd

import (
	"os"
	"regexp"
	"strings"
	"testing"
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
