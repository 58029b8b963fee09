package check

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
	"github.com/tpm2cloud/tpm2cloud/pkg/token"
)

// A signature through PKCS#11 as somebody else would make it takes a process of
// that user: this program starts itself again, with the verb [SignVerb], which
// is not in its usage. What it is to do comes by standard input, the PIN with
// it, so that no argument list and no environment shows that; what came of it
// goes to standard output. The child has no right that the user has not.

// SignVerb is the hidden verb: it is for this program itself.
const SignVerb = "sign-as-child"

// signLimit bounds one signature: an RSA key takes a slow TPM seconds.
const signLimit = 30 * time.Second

// request is what the child is to do.
type request struct {
	Module, Label, Key, PIN string
	Digest                  []byte // SHA-256
}

// answer is what came of it.
type answer struct {
	Signature []byte
	Error     string
}

// account is a user of this system.
type account struct {
	name   string
	uid    int
	gid    int
	groups []uint32
}

// userOf is the user with a number; below another root that may have no name
// here, and a file's group is all that is known of it.
func userOf(uid, gid int) (*account, error) {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return &account{name: strconv.Itoa(uid), uid: uid, gid: gid}, nil
	}
	return accountOf(u, nil)
}

func userNamed(name string, supplementary []string) (*account, error) {
	if name == "" {
		name = "root"
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, step.As(step.Unavailable, "is the agent's package installed as a whole?", fmt.Errorf("there is no user %s", name))
	}
	return accountOf(u, supplementary)
}

func accountOf(u *user.User, supplementary []string) (*account, error) {
	a := &account{name: u.Username}
	var err error
	if a.uid, err = strconv.Atoi(u.Uid); err == nil {
		a.gid, err = strconv.Atoi(u.Gid)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use the user %s: %w", u.Username, err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("cannot find the groups of %s: %w", u.Username, err)
	}
	for _, name := range supplementary {
		g, err := user.LookupGroup(name)
		if err != nil {
			return nil, step.As(step.Unavailable, "the unit does not start with a group that is missing", fmt.Errorf("there is no group %s", name))
		}
		ids = append(ids, g.Gid)
	}
	for _, id := range ids {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("cannot use the group %s of %s: %w", id, u.Username, err)
		}
		a.groups = append(a.groups, uint32(n))
	}
	return a, nil
}

// assignments are those of a unit's property Environment=, which has them
// between blanks, and in quotes where there is a blank in one.
func assignments(text string) (list []string) {
	var b strings.Builder
	quoted, escaped, any := false, false, false
	for _, r := range text {
		switch {
		case escaped:
			b.WriteRune(r)
			escaped = false
		case r == '\\':
			escaped = true
		case r == '"':
			quoted, any = !quoted, true
		case r == ' ' && !quoted:
			if any || b.Len() > 0 {
				list = append(list, b.String())
			}
			b.Reset()
			any = false
		default:
			b.WriteRune(r)
		}
	}
	if any || b.Len() > 0 {
		list = append(list, b.String())
	}
	return list
}

// signAs has a user sign a challenge, and verifies the signature.
func signAs(ctx context.Context, who *account, env []string, r request, public crypto.PublicKey) error {
	challenge := make([]byte, 32)
	rand.Read(challenge)
	digest := sha256.Sum256(challenge)
	r.Digest = digest[:]
	order, err := json.Marshal(r)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, signLimit)
	defer cancel()
	child := exec.CommandContext(ctx, self, SignVerb)
	child.Env = append([]string{"PATH=/usr/bin:/bin", "TSS2_LOG=all+NONE"}, env...)
	child.Dir = "/"
	child.Stdin = bytes.NewReader(order)
	child.WaitDelay = time.Second
	if os.Geteuid() == 0 {
		child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(who.uid), Gid: uint32(who.gid), Groups: who.groups}}
	}
	out, err := child.Output()
	if ctx.Err() != nil {
		return fmt.Errorf("it took longer than %s", signLimit)
	}
	if err != nil {
		return err
	}
	var a answer
	if err := json.Unmarshal(out, &a); err != nil {
		return fmt.Errorf("its answer cannot be read: %w", err)
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	return verifySignature(public, digest[:], a.Signature)
}

func verifySignature(public crypto.PublicKey, digest, signature []byte) error {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(key, digest, signature) {
			return nil
		}
	case *rsa.PublicKey:
		if rsa.VerifyPKCS1v15(key, crypto.SHA256, digest, signature) == nil {
			return nil
		}
	}
	return errors.New("the signature is not by the key of the LDevID certificate")
}

// SignChild is the verb SignVerb.
func SignChild(in io.Reader, out io.Writer) error {
	var r request
	if err := json.NewDecoder(io.LimitReader(in, 1<<16)).Decode(&r); err != nil {
		return fmt.Errorf("this verb is for tpm2cloud check itself: %w", err)
	}
	var a answer
	signature, err := sign(r)
	if err != nil {
		a.Error = err.Error()
	}
	a.Signature = signature
	return json.NewEncoder(out).Encode(a)
}

func sign(r request) (signature []byte, err error) {
	// As the units have it: what the library makes is for the group, too.
	syscall.Umask(0o007)
	m, err := token.Open(token.Options{Path: r.Module, Store: os.Getenv("TPM2_PKCS11_STORE"), TCTI: os.Getenv("TPM2_PKCS11_TCTI")})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	signer, err := m.Signer(r.Label, r.PIN, r.Key, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, signer.Close()) }()
	return signer.Sign(rand.Reader, r.Digest, crypto.SHA256)
}
