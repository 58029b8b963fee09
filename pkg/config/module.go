package config

import (
	"os"
	"runtime"
	"strings"
)

// triplet is Debian's multiarch name of this program's architecture: a module
// of another one, which may be installed too, can't be loaded.
var triplet = map[string]string{
	"386":     "i386-linux-gnu",
	"amd64":   "x86_64-linux-gnu",
	"arm":     "arm-linux-gnueabihf",
	"arm64":   "aarch64-linux-gnu",
	"ppc64le": "powerpc64le-linux-gnu",
	"riscv64": "riscv64-linux-gnu",
	"s390x":   "s390x-linux-gnu",
}

// Module is the path of libtpm2_pkcs11, and whether it is there. It is the one
// that is configured, else the one that Debian's package installs: below the
// root, or on the machine that runs, whose libraries a throw-away root shares.
// Where it is not installed yet, the path is where it will be.
func (c *Config) Module() (path string, found bool) {
	if m := c.LDevID.Token.Module; m != "" {
		return c.Path(m), regular(c.Path(m))
	}
	places := modulePlaces(runtime.GOARCH)
	for _, root := range []string{c.root, "/"} {
		for _, p := range places {
			if p = (&Config{root: root}).Path(p); regular(p) {
				return p, true
			}
		}
	}
	return c.Path(places[0]), false
}

func regular(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// modulePlaces are where the module lies. Debian has it twice: in pkcs11/, for
// programs that load modules, and as a versioned library.
func modulePlaces(goarch string) []string {
	var places []string
	if t, ok := triplet[goarch]; ok {
		places = append(places, "/usr/lib/"+t+"/pkcs11/libtpm2_pkcs11.so", "/usr/lib/"+t+"/libtpm2_pkcs11.so.1")
	}
	if strings.HasSuffix(goarch, "64") {
		places = append(places, "/usr/lib64/pkcs11/libtpm2_pkcs11.so")
	}
	return append(places, "/usr/lib/pkcs11/libtpm2_pkcs11.so")
}
