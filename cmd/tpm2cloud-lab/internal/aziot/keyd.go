package aziot

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// ServeKeyd stands in for aziot-keyd on ROOT/run/aziot/keyd.sock until ctx ends. It knows one
// request, the one that tells whether a key pair is really there. Why it is not is said to log only:
// the real one tells its clients no more than "internal error" either.
func ServeKeyd(ctx context.Context, root string, dropins []string, log io.Writer, ready func(path string)) error {
	if err := Environment(dropins); err != nil {
		return err
	}
	path := filepath.Join(root, "run/aziot/keyd.sock")
	listener, err := listenUnix(path)
	if err != nil {
		return fmt.Errorf("cannot serve keyd: %w", err)
	}
	d := &keyd{root: root, log: log, secret: make([]byte, 32)}
	_, _ = rand.Read(d.secret) // never fails
	mux := http.NewServeMux()
	mux.HandleFunc("GET /keypair/{id}", d.keyPair)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		answerKeyd(w, http.StatusNotFound, "message", "not found")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second}
	stopped := context.AfterFunc(ctx, func() {
		shutdown, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(shutdown) // what is not done by then is cut off by our end
	})
	defer stopped()
	ready(path)
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("cannot serve keyd: %w", err)
	}
	return nil
}

// listenUnix takes over the socket that an earlier run may have left behind.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", path)
}

type keyd struct {
	root   string
	log    io.Writer
	secret []byte // authenticates handles
}

func (d *keyd) keyPair(w http.ResponseWriter, r *http.Request) {
	switch v := r.URL.Query().Get("api-version"); v {
	case "2020-09-01", "2021-05-01":
	case "":
		answerKeyd(w, http.StatusBadRequest, "message", "api-version not specified")
		return
	default:
		answerKeyd(w, http.StatusBadRequest, "message", fmt.Sprintf("invalid api-version %q", v))
		return
	}
	id := r.PathValue("id")
	err := d.load(id)
	if err != nil {
		fmt.Fprintf(d.log, "GET /keypair/%s: %v\n", id, err)
	}
	switch {
	case errors.Is(err, errNoKey):
		answerKeyd(w, http.StatusBadRequest, "message", "a parameter has an invalid value")
	case err != nil:
		answerKeyd(w, http.StatusInternalServerError, "message", "internal error")
	default:
		answerKeyd(w, http.StatusOK, "keyHandle", d.handle(id))
	}
}

// load reads the configuration anew each time, which saves a test the restart of the real one.
func (d *keyd) load(id string) error {
	data, err := os.ReadFile(configPath(d.root, "keyd"))
	if err != nil {
		return fmt.Errorf("cannot read config: %w", err)
	}
	var c Keyd
	if err := toml.Unmarshal(data, &c); err != nil {
		return fmt.Errorf("cannot read config: %w", err)
	}
	home := c.AziotKeys["homedir_path"]
	if home == "" {
		home = "/var/lib/aziot/keyd"
	}
	keys, err := openKeys(&c, filepath.Join(d.root, home))
	if err != nil {
		return err
	}
	_, err = keys.load(id)
	return err
}

// handle is a token that names the key, in the form of the real one.
func (d *keyd) handle(id string) string {
	sr, err := json.Marshal(map[string]any{"key_id": map[string]string{"KeyPair": id}, "nonce": rand.Text()})
	if err != nil {
		panic(err) // strings always have a JSON form
	}
	mac := hmac.New(sha256.New, d.secret)
	mac.Write(sr)
	return "sr=" + base64.StdEncoding.EncodeToString(sr) + "&sig=" + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func answerKeyd(w http.ResponseWriter, status int, name, value string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(map[string]string{name: value}) // a client that went away
}
