package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
)

// The measures of a plot, in pixels.
const (
	panelWidth, panelHeight = 440, 170
	marginLeft, marginTop   = 64, 40
	marginRight, marginFoot = 16, 44
	columns                 = 2
)

// plot draws the requests in each second, a panel for each outcome: time from
// left to right, requests upwards in powers of ten, because the first second has
// all of the fleet. A column of pixels shows the busiest of its seconds. The
// line across is what the CA can do.
func plot(outcomes []outcome) []byte {
	const cellWidth, cellHeight = marginLeft + panelWidth + marginRight, marginTop + panelHeight + marginFoot
	rows := (len(outcomes) + columns - 1) / columns
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">
<style>
svg { background: #fff } text { fill: #222 } .axis { stroke: #888; fill: none } .load { fill: #2a6fb0 } .rate { stroke: #c22; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) { svg { background: #16181c } text { fill: #ddd } .load { fill: #6bb0ee } .rate { stroke: #f77 } }
</style>
<title>Requests in each second: %d devices powered on in the same second</title>
`, columns*cellWidth, rows*cellHeight, outcomes[0].Devices)
	for i, o := range outcomes {
		fmt.Fprintf(&b, "<g transform=\"translate(%d %d)\">\n", i%columns*cellWidth+marginLeft, i/columns*cellHeight+marginTop)
		o.panel(&b)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func (o outcome) panel(b *bytes.Buffer) {
	decades := int(math.Ceil(math.Log10(float64(max(o.Devices, 10)))))
	y := func(requests int) float64 {
		return panelHeight * (1 - math.Log10(float64(max(requests, 1)))/float64(decades))
	}
	fmt.Fprintf(b, "<text x=\"0\" y=\"-22\" font-weight=\"bold\">%s</text>\n", html.EscapeString(o.Model))
	fmt.Fprintf(b, "<text x=\"0\" y=\"-7\">%d devices: %s; at most %d requests a device</text>\n",
		o.Devices, o.took(), o.MostRequests)
	seconds := len(o.PerSecond)
	b.WriteString(`<path class="load" d="M0 170`)
	for x := range panelWidth {
		from, to := x*seconds/panelWidth, max((x+1)*seconds/panelWidth, x*seconds/panelWidth+1)
		most := 0
		for _, n := range o.PerSecond[from:min(to, seconds)] {
			most = max(most, n)
		}
		fmt.Fprintf(b, "V%.1fh1", y(most))
	}
	fmt.Fprintf(b, "V%dz\"/>\n", panelHeight)
	fmt.Fprintf(b, "<path class=\"rate\" d=\"M0 %.1fh%d\"/>\n", y(rate), panelWidth)
	fmt.Fprintf(b, "<path class=\"axis\" d=\"M0 0V%dH%d\"/>\n", panelHeight, panelWidth)
	for d := 0; d <= decades; d++ {
		value := int(math.Pow10(d))
		fmt.Fprintf(b, "<path class=\"axis\" d=\"M-4 %.1fh4\"/><text x=\"-7\" y=\"%.1f\" text-anchor=\"end\">%d</text>\n", y(value), y(value)+4, value)
	}
	unit, name := 1, "s"
	if seconds > 3*3600 {
		unit, name = 3600, "h"
	} else if seconds > 900 {
		unit, name = 60, "min"
	}
	every := ticks(float64(seconds) / float64(unit))
	for t := 0.0; t*float64(unit) <= float64(seconds); t += every {
		x := t * float64(unit) * panelWidth / float64(seconds)
		fmt.Fprintf(b, "<path class=\"axis\" d=\"M%.1f %dv4\"/><text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n", x, panelHeight, x, panelHeight+17, t)
	}
	fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s after power on</text>\n", panelWidth/2, panelHeight+33, name)
	fmt.Fprintf(b, "<text transform=\"translate(-50 %d) rotate(-90)\" text-anchor=\"middle\">requests per second</text>\n", panelHeight/2)
}

// ticks is a round distance that divides a length into five to ten.
func ticks(length float64) float64 {
	step := math.Pow10(int(math.Floor(math.Log10(length / 5))))
	for _, factor := range []float64{5, 2} {
		if length/(step*factor) >= 5 {
			return step * factor
		}
	}
	return step
}
