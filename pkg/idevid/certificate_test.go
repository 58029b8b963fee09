package idevid

import "testing"

func TestHalfOf(t *testing.T) {
	const whole = "certificate\xff\xffend"
	for data, want := range map[string]bool{
		whole: true,
		"certi\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff":                true,
		"certi\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00":                true,
		"certificate\xff\xff\xff\xff\xff":                                  true,
		"certificate\xff\xffenx":                                           false,
		"certificate\xff\xffen":                                            false, // another size
		"certi\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00":                false,
		"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff": false, // nothing of ours
		"certi\xff\xff\xff\x8f\xfe\x80\x81\x82\xff\xff\xff":                false, // the last ones are somebody else's, and no UTF-8
		"a foreign thing.":                                                 false,
		"":                                                                 false,
	} {
		if got := halfOf([]byte(data), []byte(whole)); got != want {
			t.Errorf("%q: %v", data, got)
		}
	}
}
