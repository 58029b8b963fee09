package main

import "time"

// kind is what a request came to.
type kind int

const (
	issued  kind = iota
	busy         // an answer that says: later (503)
	silence      // no answer: refused, broken, or later than the device waits
)

// answer is what a device gets, and when.
type answer struct {
	kind  kind
	at    time.Duration
	after time.Duration // Retry-After; 0: none
}

// A ca answers one request after the other, in the order of their times. Known
// says that it has sent this device away before, for the same certificate.
type ca interface {
	ask(now time.Duration, known bool) answer
}

// A worker issues certificates one after the other, and has a short queue.
type worker struct {
	each time.Duration // for one certificate
	free time.Duration // when it is
}

// take puts work of a length at the end of the queue.
func (w *worker) take(now, length time.Duration) (done time.Duration) {
	w.free = max(w.free, now) + length
	return w.free
}

func (w *worker) queue(now time.Duration) time.Duration { return max(w.free-now, 0) }

// fenced is a CA that takes what it can do within a second and sends the rest
// away.
type fenced struct {
	worker
	longest time.Duration // of the queue
	refusal time.Duration // work that it is to send somebody away
	backlog int           // devices that were sent away and not yet served
	after   func(*fenced) time.Duration
}

func (c *fenced) ask(now time.Duration, known bool) answer {
	if c.queue(now) >= c.longest {
		done := now
		if c.refusal > 0 {
			if done = c.take(now, c.refusal); done > now+patience {
				return answer{silence, now + patience, 0}
			}
		}
		if !known {
			c.backlog++
		}
		return answer{busy, done, c.after(c)}
	}
	if known {
		c.backlog--
	}
	return answer{issued, c.take(now, c.each), 0}
}

// estimating says when the device's turn is: the backlog over the rate, in
// whole seconds, as the header has it.
func estimating(c *fenced) time.Duration {
	return (time.Duration(c.backlog)*c.each + time.Second - 1).Truncate(time.Second)
}

// constant always says the same.
func constant(after time.Duration) func(*fenced) time.Duration {
	return func(*fenced) time.Duration { return after }
}

// unfenced is a CA without any limit but that of its listening socket. Who has
// waited too long has hung up, and the CA does not notice: it works for nothing,
// and the more, the more it is asked.
type unfenced struct {
	worker
	listen int // connections that wait to be accepted
}

func (c *unfenced) ask(now time.Duration, _ bool) answer {
	if int(c.queue(now)/c.each) >= c.listen {
		// The kernel drops the connection's first packet, and the next ones too.
		return answer{silence, now + patience, 0}
	}
	if done := c.take(now, c.each); done <= now+patience {
		return answer{issued, done, 0}
	}
	return answer{silence, now + patience, 0}
}

// down is a CA that is not there before a time; its machine or its load
// balancer is, and refuses connections.
type down struct {
	until time.Duration
	ca
}

func (c *down) ask(now time.Duration, known bool) answer {
	if now < c.until {
		return answer{silence, now, 0}
	}
	return c.ca.ask(now, known)
}
