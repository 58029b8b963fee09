// Package check looks at a device as its operator does: at all three programs
// at once, and beyond what they look at themselves.
//
// A [Check] proves one thing actively: it has keys sign, opens what others open
// as the users that they are, and speaks to the servers. It changes nothing, and
// tries no secret but two that are configured: the token's PIN, and the agent's
// EST password with the server that it is for.
//
// The checks of a subject are one file: config.go, tpm.go, keys.go, files.go,
// agent.go, servers.go, units.go. [List] has all of them, in their order, which
// is that of cause and effect; tpm2cloud(7) has a line for each.
package check
