package main

import (
	"encoding/binary"

	"github.com/google/go-tpm/tpm2"
)

// slots is as much of a resource manager as both contenders need. A TPM has
// few places for loaded objects and sessions, and tpm2-tools leave theirs
// behind, because on a real board the kernel (/dev/tpmrm0) or tpm2-abrmd
// flushes them when a client is gone. So does this, and these flushes are not
// counted, as they are not the client's commands there either.
//
// A closed connection says nothing: both clients open one for each command.
// What counts is the process at the other end of it. Before the command of one
// process, what processes that have ended since left behind is flushed. A
// context that was saved is no longer loaded: a session handed from tool to
// tool in a file stays alive, as with tpm2-abrmd. Handles are not virtualised.
type slots struct {
	send    func([]byte) error
	clients map[int]*client
}

type client struct {
	process *process
	loaded  map[tpm2.TPMHandle]bool
}

func newSlots(send func([]byte) error) *slots {
	return &slots{send: send, clients: make(map[int]*client)}
}

// before flushes what ended processes left, and begins to watch this one.
func (s *slots) before(pid int) error {
	for id, c := range s.clients {
		if !c.process.ended() {
			continue
		}
		for handle := range c.loaded {
			// A session may have ended by itself: the TPM's no is fine.
			if err := s.send(flushCommand(handle)); err != nil {
				return err
			}
		}
		c.process.close()
		delete(s.clients, id)
	}
	if s.clients[pid] == nil {
		process, err := openProcess(pid)
		if err != nil {
			return err
		}
		s.clients[pid] = &client{process, make(map[tpm2.TPMHandle]bool)}
	}
	return nil
}

// after follows what the command loaded or flushed.
func (s *slots) after(pid int, command, response []byte) {
	if tpm2.TPMRC(codeOf(response)) != tpm2.TPMRCSuccess {
		return
	}
	loaded := s.clients[pid].loaded
	switch codeOf(command) {
	case tpm2.TPMCCCreatePrimary, tpm2.TPMCCCreateLoaded, tpm2.TPMCCLoad, tpm2.TPMCCLoadExternal,
		tpm2.TPMCCContextLoad, tpm2.TPMCCStartAuthSession, tpm2.TPMCCHashSequenceStart, tpm2.TPMCCMACStart:
		loaded[firstHandle(response)] = true
	case tpm2.TPMCCFlushContext, tpm2.TPMCCSequenceComplete, tpm2.TPMCCEventSequenceComplete:
		s.forget(firstHandle(command))
	case tpm2.TPMCCContextSave:
		if handle := firstHandle(command); isSession(handle) {
			s.forget(handle)
		}
	}
}

// forget takes a handle from whoever had it: a process may flush the session
// of another.
func (s *slots) forget(handle tpm2.TPMHandle) {
	for _, c := range s.clients {
		delete(c.loaded, handle)
	}
}

func (s *slots) close() {
	for _, c := range s.clients {
		c.process.close()
	}
}

// firstHandle is the field behind the header. In the response of a command
// that loads it is the new handle.
func firstHandle(message []byte) tpm2.TPMHandle {
	if len(message) < headerSize+4 {
		return 0
	}
	return tpm2.TPMHandle(binary.BigEndian.Uint32(message[headerSize:]))
}

// isSession: the first byte of a handle is its type (Part 2, clause 7.2).
func isSession(h tpm2.TPMHandle) bool {
	t := tpm2.TPMHT(h >> 24)
	return t == tpm2.TPMHTHMACSession || t == tpm2.TPMHTPolicySession
}
