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
		{value: "+5", none: true},
		{value: "5s", none: true},
		{value: "0x10", none: true},
		{value: "1e3", none: true},
		{value: "5, 10", none: true},
		{value: "\x00", none: true},
		{value: "007", want: 7 * time.Second},
		{value: "18446744073709551615", want: maxDelay},
		{value: "18446744073709551616", want: maxDelay},
		{value: "9223372036854775808", want: maxDelay},
		{value: "0", want: 0},
		{value: "120", want: 2 * time.Minute},
		{value: "99999999999999999999999", want: maxDelay},
		{value: "Mon, 01 Jun 2026 12:02:00 GMT", date: date, want: 2 * time.Minute},
		{value: "Monday, 01-Jun-26 12:02:00 GMT", date: date, want: 2 * time.Minute},
		{value: "Mon Jun  1 12:02:00 2026", date: date, want: 2 * time.Minute},
		{value: "Mon, 01 Jun 2026 12:02:00 GMT", date: "Monday, 01-Jun-26 12:00:00 GMT", want: 2 * time.Minute},
		{value: "Mon, 01 Jun 2026 12:02:00 GMT", date: "Mon Jun  1 12:00:00 2026", want: 2 * time.Minute},
		{value: "Mon, 01 Jun 2026 12:02:00 UTC", date: date, none: true},
		{value: "Mon, 32 Jun 2026 12:02:00 GMT", date: date, none: true},
		{value: "2026-06-01T12:02:00Z", date: date, none: true},
		{value: "Mon, 01 Jun 2026 11:00:00 GMT", date: date, want: 0},
		{value: "Fri, 31 Dec 9999 23:59:59 GMT", date: date, want: maxDelay},
		// Without the server's own date the device's clock is all there is.
		{value: "Mon, 01 Jun 2026 12:02:00 GMT", want: maxDelay},
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

// Whatever a server sends, the time is none, or from now on until the longest.
func FuzzRetryAfter(f *testing.F) {
	f.Add("120", "")
	f.Add("99999999999999999999999", "never")
	f.Add("Mon, 01 Jun 2026 12:02:00 GMT", "Mon Jun  1 12:00:00 2026")
	f.Add("Monday, 01-Jun-26 12:02:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT")
	f.Add("Sat, 01 Jan 0000 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT")
	f.Fuzz(func(t *testing.T, value, date string) {
		now := time.Date(1970, 1, 1, 0, 5, 0, 0, time.UTC)
		header := http.Header{"Retry-After": {value}, "Date": {date}}
		if got := retryAfter(header, now); !got.IsZero() && (got.Before(now) || got.After(now.Add(maxDelay))) {
			t.Errorf("%q, %q: %v", value, date, got)
		}
	})
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
