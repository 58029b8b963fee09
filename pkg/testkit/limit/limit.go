// Package limit bounds what a fuzz test may take for one input: a parser whose
// time grows faster than its input is a finding, and no fuzzer tells of it.
package limit

import (
	"testing"
	"time"
)

// Time fails a test that goes on for longer than it may, once it is over:
//
//	defer limit.Time(t, 5*time.Second)()
//
// The limit is a generous one, because a fuzzer keeps all processors busy.
func Time(t *testing.T, most time.Duration) func() {
	begin := time.Now()
	return func() {
		t.Helper()
		if took := time.Since(begin); took > most {
			t.Errorf("it took %s, and may take %s", took, most)
		}
	}
}
