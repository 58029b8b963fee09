package edgecfg

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// groupID is the number of a group in /etc/group below the root, and whether
// there is such a group. The file is read here, not asked for by name service:
// below another root this system's groups would be the wrong ones, and the
// groups of packages (aziotcs, tss, tpm2cloud-token) are always in the file.
func (p *Program) groupID(name string) (gid int, found bool, err error) {
	path := p.cfg.Path("/etc/group")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("cannot look up the group %s: %w", name, err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // a group with very many members is one line
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) < 3 || fields[0] != name {
			continue
		}
		gid, err := strconv.Atoi(fields[2])
		if err != nil {
			return 0, false, fmt.Errorf("cannot look up the group %s in %s: %w", name, path, err)
		}
		return gid, true, nil
	}
	if err := lines.Err(); err != nil {
		return 0, false, fmt.Errorf("cannot look up the group %s in %s: %w", name, path, err)
	}
	return 0, false, nil
}
