package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// command is a program as its manual page has it.
type command struct {
	name   string
	page   string   // NAME(SECTION)
	common []option // of every verb, if the synopsis has [options]
	verbs  []verb   // in the order of the synopsis; one without words is the program alone
}

// verb is a line of the synopsis.
type verb struct {
	words   string // "renew", "ca create"
	options []option
	operand string // "DIR"
}

// option is a flag, and what the page calls its value.
type option struct{ name, value string }

var (
	title      = regexp.MustCompile(`^(\S+)\(\d\)`)
	heading    = regexp.MustCompile(`(?m)^# (.+)$`)
	optionForm = regexp.MustCompile(`--([a-z][a-z0-9-]*)(?: _([A-Z:]+)_)?`)
	operand    = regexp.MustCompile(`_([A-Z]+)_`)
	verbForm   = regexp.MustCompile(`^[a-z][a-z-]*( [a-z][a-z-]*)*`)
	termForm   = regexp.MustCompile(`(?m)^\*--.*$`)
)

// readCommand reads what a page says under SYNOPSIS and OPTIONS. The synopsis has
// a line for each verb, with the flags of that verb; [options] are those under
// OPTIONS.
func readCommand(page string) (*command, error) {
	found := title.FindStringSubmatch(page)
	if found == nil {
		return nil, fmt.Errorf("it does not begin with NAME(SECTION)")
	}
	c := &command{name: found[1], page: found[0]}
	common := false
	for line := range strings.Lines(section(page, "SYNOPSIS")) {
		line = strings.TrimSuffix(strings.TrimSpace(strings.ReplaceAll(line, "*", "")), "++")
		if line == "" {
			continue
		}
		rest, ok := strings.CutPrefix(line, c.name)
		if !ok {
			return nil, fmt.Errorf("a line of the synopsis does not begin with %s: %q", c.name, line)
		}
		rest = strings.TrimSpace(rest)
		if before, after, ok := strings.Cut(rest, "[options]"); ok {
			common, rest = true, strings.TrimSpace(before+after)
		}
		v := verb{words: verbForm.FindString(rest)}
		for _, o := range optionForm.FindAllStringSubmatch(rest, -1) {
			v.options = append(v.options, option{o[1], o[2]})
		}
		if o := operand.FindStringSubmatch(optionForm.ReplaceAllString(rest, "")); o != nil {
			v.operand = o[1]
		}
		c.verbs = append(c.verbs, v)
	}
	if len(c.verbs) == 0 {
		return nil, fmt.Errorf("it has no synopsis")
	}
	if common {
		for _, term := range termForm.FindAllString(section(page, "OPTIONS"), -1) {
			for _, o := range optionForm.FindAllStringSubmatch(strings.ReplaceAll(term, "*", ""), -1) {
				c.common = append(c.common, option{o[1], o[2]})
			}
		}
	} else {
		c.common = []option{{name: "help"}}
	}
	return c, nil
}

// section is the text below a heading.
func section(page, name string) string {
	all := heading.FindAllStringSubmatchIndex(page, -1)
	for i, at := range all {
		if page[at[2]:at[3]] != name {
			continue
		}
		end := len(page)
		if i+1 < len(all) {
			end = all[i+1][0]
		}
		return page[at[1]:end]
	}
	return ""
}

// --- bash ----------------------------------------------------------------------

// completion is the program's bash completion. It uses nothing of the package
// bash-completion, whose functions were renamed between Debian 12 and 13; that
// only loads it.
func (c *command) completion() string {
	function := "_" + strings.ReplaceAll(c.name, "-", "_")
	var b strings.Builder
	fmt.Fprintf(&b, `# bash completion for %s, made of its manual page

%s() {
	local current=${COMP_WORDS[COMP_CWORD]} verb='' takes='' verbs='' flags='' operand='' word i
	COMPREPLY=()
	for ((i = 1; i < COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		# "--flag=value" is three words here.
		if [[ $word == = ]]; then
			takes=${takes:-value}
			continue
		fi
		if [[ $takes ]]; then
			takes=''
			continue
		fi
		case "$verb $word" in
`, c.page, function)
	for _, kind := range []string{"directory", "file", "value"} {
		if patterns := c.taking(kind); len(patterns) > 0 {
			fmt.Fprintf(&b, "\t\t%s) takes='%s' ;;\n", strings.Join(patterns, " | "), kind)
		}
	}
	b.WriteString(`		*' -'*) ;;
		*) verb+=${verb:+ }$word ;;
		esac
	done
	[[ $current != = ]] || current=''
	case $verb in
`)
	for _, words := range c.prefixes() {
		fmt.Fprintf(&b, "\t'%s')\n", words)
		if next := c.next(words); len(next) > 0 {
			fmt.Fprintf(&b, "\t\tverbs='%s'\n", strings.Join(next, " "))
		}
		var flags []string
		for _, o := range c.optionsOf(words) {
			flags = append(flags, "--"+o.name)
		}
		fmt.Fprintf(&b, "\t\tflags='%s'\n", strings.Join(flags, " "))
		if i := slices.IndexFunc(c.verbs, func(v verb) bool { return v.words == words }); i >= 0 && c.verbs[i].operand != "" {
			fmt.Fprintf(&b, "\t\toperand='%s'\n", kindOf(c.verbs[i].operand))
		}
		b.WriteString("\t\t;;\n")
	}
	fmt.Fprintf(&b, `	esac
	if [[ -z $takes && $current == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$current")
		return
	fi
	case ${takes:-$operand} in
	file)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
		;;
	directory)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -d -- "$current")
		;;
	'')
		mapfile -t COMPREPLY < <(compgen -W "${verbs:-$flags}" -- "$current")
		;;
	esac
} && complete -F %s %s
`, function, c.name)
	return b.String()
}

// kindOf says what a value is completed with.
func kindOf(value string) string {
	switch value {
	case "FILE":
		return "file"
	case "DIR":
		return "directory"
	}
	return "value"
}

// taking are patterns of "VERB --FLAG" for the flags that take such a value.
func (c *command) taking(kind string) (patterns []string) {
	for _, o := range c.common {
		if o.value != "" && kindOf(o.value) == kind {
			patterns = append(patterns, "*' --"+o.name+"'")
		}
	}
	for _, v := range c.verbs {
		for _, o := range v.options {
			if o.value != "" && kindOf(o.value) == kind {
				patterns = append(patterns, "'"+v.words+" --"+o.name+"'")
			}
		}
	}
	return patterns
}

// prefixes are what may have been typed of verbs, beginning with nothing.
func (c *command) prefixes() []string {
	list := []string{""}
	for _, v := range c.verbs {
		prefix := ""
		for _, word := range strings.Fields(v.words) {
			prefix = strings.TrimSpace(prefix + " " + word)
			if !slices.Contains(list, prefix) {
				list = append(list, prefix)
			}
		}
	}
	return list
}

// next are the words that may follow such a prefix.
func (c *command) next(prefix string) (words []string) {
	for _, v := range c.verbs {
		all, typed := strings.Fields(v.words), strings.Fields(prefix)
		if len(all) > len(typed) && slices.Equal(all[:len(typed)], typed) && !slices.Contains(words, all[len(typed)]) {
			words = append(words, all[len(typed)])
		}
	}
	return words
}

// optionsOf are a verb's own flags, and those of all.
func (c *command) optionsOf(words string) (list []option) {
	for _, v := range c.verbs {
		if v.words == words {
			list = append(list, v.options...)
		}
	}
	return append(list, c.common...)
}
