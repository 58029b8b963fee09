// Package check looks at a device as an operator does: at all three programs at once.
package check
