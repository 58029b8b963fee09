package aziot

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
)

// Algorithms of key pairs, by keyd's names.
const (
	algorithmRSA = "rsa-2048"
	algorithmEC  = "ec-p256"
)

// keyStore finds and makes keys as aziot-keyd does.
type keyStore struct {
	home      string // for keys that are files
	preloaded map[string]string
	module    *module   // nil: no pkcs11_lib_path
	baseSlot  *TokenURI // nil: none, or no library
}

// openKeys checks [aziot_keys] as keyd does when it starts: a parameter that it does not know is
// fatal, and with a library and a base slot the token must be there already.
func openKeys(c *Keyd, home string) (*keyStore, error) {
	k := &keyStore{home: home, preloaded: c.PreloadedKeys}
	for _, name := range slices.Sorted(maps.Keys(c.AziotKeys)) {
		value := c.AziotKeys[name]
		switch name {
		case "homedir_path":
		case "pkcs11_lib_path":
			k.module = &module{path: value}
		case "pkcs11_base_slot":
			u, err := ParseTokenURI(value)
			if err != nil {
				return nil, fmt.Errorf("cannot start keyd: pkcs11_base_slot: %w", err)
			}
			k.baseSlot = &u
		default:
			return nil, fmt.Errorf("cannot start keyd: [aziot_keys] %s: unrecognized value", name)
		}
	}
	if k.module == nil {
		k.baseSlot = nil
	}
	if k.baseSlot != nil {
		if err := k.module.phase(k.baseSlot, false, func(session) error { return nil }); err != nil {
			return nil, fmt.Errorf("cannot start keyd: pkcs11_base_slot: %w", err)
		}
	}
	return k, nil
}

// location is where the key of an id is, or would be made.
func (k *keyStore) location(id string) (KeyLocation, error) {
	if uri, ok := k.preloaded[id]; ok {
		return ParseKeyLocation(uri)
	}
	if k.baseSlot != nil {
		u := *k.baseSlot
		u.Object, u.HasObject = id, true
		return KeyLocation{Token: &u}, nil
	}
	return KeyLocation{File: filepath.Join(k.home, "keys", fileName(id)+".key")}, nil
}

// load finds a key. It returns errNoKey if there is none.
func (k *keyStore) load(id string) (crypto.Signer, error) {
	signer, err := k.loadInner(id)
	if err != nil {
		return nil, fmt.Errorf("cannot load key %s: %w", id, err)
	}
	return signer, nil
}

func (k *keyStore) loadInner(id string) (crypto.Signer, error) {
	l, err := k.location(id)
	if err != nil {
		return nil, err
	}
	if l.Token != nil {
		if k.module == nil {
			return nil, errors.New("its URI is pkcs11: but pkcs11_lib_path is not set")
		}
		return k.module.load(l.Token)
	}
	data, err := os.ReadFile(l.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoKey
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s is no PEM file", l.File)
	}
	if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.File, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s is a key that cannot sign", l.File)
	}
	return signer, nil
}

// create makes a new key in the place of an old one.
func (k *keyStore) create(id, algorithm string) (crypto.Signer, error) {
	l, err := k.location(id)
	if err == nil {
		if l.Token != nil {
			if k.module == nil {
				err = errors.New("pkcs11_lib_path is not set")
			} else {
				err = k.module.generate(l.Token, algorithm)
			}
		} else {
			err = createKeyFile(l.File, algorithm)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot create key %s: %w", id, err)
	}
	return k.load(id)
}

func createKeyFile(path, algorithm string) error {
	var key any
	var err error
	if algorithm == algorithmRSA {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return replaceFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// fileName is the name that the daemons give the file of an id: something readable, and a hash.
func fileName(id string) string {
	readable := strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return r
		}
		return -1
	}, id)
	sum := sha256.Sum256([]byte(id))
	return readable + "-" + hex.EncodeToString(sum[:])
}

// replaceFile removes the old file and creates a new one, as the real tools do: a new file has the
// mode it is given, whatever the old one's was.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, data, mode)
}
