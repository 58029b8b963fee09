package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"strconv"
)

// workshop makes boards and lets contenders work on them.
type workshop struct {
	ctx    context.Context
	dir    string
	bin    string
	vendor *vendor
	lab    *lab
	boards int
}

// on lets a contender work on a fresh board.
func (w *workshop) on(c *contender, do func(*board, []*exec.Cmd) error) error {
	w.boards++
	b, err := newBoard(w.ctx, w.vendor, filepath.Join(w.dir, strconv.Itoa(w.boards)))
	if err != nil {
		return err
	}
	defer b.powerOff()
	cmds, err := c.programs(w.ctx, b)
	if err != nil {
		return err
	}
	return do(b, cmds)
}

// inspect measures what a clock would be disturbed by.
func (w *workshop) inspect(r *result) error {
	err := w.on(&r.contender, func(b *board, cmds []*exec.Cmd) (err error) {
		r.processes, err = countProcesses(w.ctx, b, cmds)
		return err
	})
	if err != nil || r.theirs {
		return err
	}
	return w.on(&r.contender, func(_ *board, cmds []*exec.Cmd) (err error) {
		r.rss, err = peakRSS(cmds)
		return err
	})
}

// time does one run, and then a second one on the same board.
func (w *workshop) time(r *result) error {
	return w.on(&r.contender, func(b *board, cmds []*exec.Cmd) error {
		first, err := measure(b, cmds)
		if err != nil {
			return err
		}
		r.first = append(r.first, first)
		if r.theirs {
			return nil
		}
		again, err := runAgain(w.ctx, b, w.bin, w.lab)
		r.again = append(r.again, again)
		return err
	})
}
