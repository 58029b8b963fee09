// Package operator is what the operator's program does beyond its command line:
// the picture of a device, what a reset takes away and in which order, and what
// goes into a report. It looks at all programs, by way of pkg/check.
package operator
