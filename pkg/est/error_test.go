package est

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(1970, 1, 1, 0, 5, 0, 0, time.UTC) // the device's clock is not set
	const date = "Mon, 01 Jun 2026 12:00:00 GMT"
	for _, test := range []struct {
		value, date string
		want        time.Duration
		none        bool
	}{
		{value: "", none: true},
		{value: "soon", none: true},
		{value: "-1", none: true},
		{value: "1.5", none: true},
		{value: "0", want: 0},
		{value: "120", want: 2 * time.Minute},
		{value: "99999999999999999999999", want: maxDelay},
		{value: "Mon, 01 Jun 2026 12:02:00 GMT", date: date, want: 2 * time.Minute},
		{value: "Monday, 01-Jun-26 12:02:00 GMT", date: date, want: 2 * time.Minute},
		{value: "Mon, 01 Jun 2026 11:00:00 GMT", date: date, want: 0},
		{value: "Thu, 01 Jan 1970 00:06:00 GMT", want: time.Minute},
		{value: "Thu, 01 Jan 1970 00:06:00 GMT", date: "never", want: time.Minute},
	} {
		header := http.Header{}
		header.Set("Retry-After", test.value)
		header.Set("Date", test.date)
		got := retryAfter(header, now)
		if test.none != got.IsZero() || !test.none && !got.Equal(now.Add(test.want)) {
			t.Errorf("%q, %q: got %v", test.value, test.date, got)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "",
		" one\r\n two\tthree ":             "one two three",
		"\x1b[2J\x00ok\x7f\u202e":          "[2J ok",
		"gerät\xff":                        "gerät",
		strings.Repeat("x", 1000):          strings.Repeat("x", 200) + "…",
		strings.Repeat("é", 200):           strings.Repeat("é", 200),
		strings.Repeat("\n", 900) + "late": "",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
