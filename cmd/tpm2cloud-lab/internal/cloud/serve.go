package cloud

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Options are what [Serve] can be told.
type Options struct {
	Dir             string
	Listen          string // of EST; the other listeners take free ports
	LDevIDDays      int
	OperationalDays int
	Faults          []Fault
}

// Description is lab.json: all that a client of the lab needs. The file has mode 0600, because it
// holds credentials.
type Description struct {
	ESTURL          string `json:"est_url"` // without label
	ESTURLExpired   string `json:"est_url_expired"`
	ESTURLWrongHost string `json:"est_url_wrong_host"`
	ESTURLUntrusted string `json:"est_url_untrusted"`
	DPSURL          string `json:"dps_url"`
	HubURL          string `json:"hub_url"`
	ControlURL      string `json:"control_url"`
	ProxyURL        string `json:"proxy_url"`

	// Each file holds the issuing CA, if there is one, and the root.
	ServerCA      string `json:"server_ca"`
	IDevIDCA      string `json:"idevid_ca"`
	LDevIDCA      string `json:"ldevid_ca"`
	OperationalCA string `json:"operational_ca"`

	Accounts
	Log string `json:"log"`
}

// Serve runs the lab until ctx ends. It calls ready with the path of lab.json when all of it
// listens.
func Serve(ctx context.Context, o Options, ready func(path string)) error {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return fmt.Errorf("cannot serve: %w", err)
	}
	if !isLoopback(o.Listen) {
		return fmt.Errorf("cannot serve: %q is not host:port on loopback", o.Listen)
	}
	cas, err := openAuthorities(dir)
	if err != nil {
		return err
	}
	accounts, err := openAccounts(dir)
	if err != nil {
		return err
	}
	logPath := filepath.Join(dir, "lab.log")
	log, err := openLog(logPath)
	if err != nil {
		return err
	}
	defer log.close()

	// One of an earlier run would lead a client astray until this run listens.
	path := filepath.Join(dir, "lab.json")
	before := addressesBefore(path)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot serve: %w", err)
	}
	faults, hold := &faultTable{faults: o.Faults}, newHolder()
	est, err := newESTServer(cas.byLabel, accounts,
		map[string]int{labelLDevID: o.LDevIDDays, labelOperational: o.OperationalDays}, faults, hold, log)
	if err != nil {
		return err
	}
	bad, err := cas.badServers()
	if err != nil {
		return err
	}

	ls := &listeners{ctx: ctx, before: before, hold: hold, log: log}
	defer ls.stop()
	estAt := func(name, address string, cert tls.Certificate) string {
		return "https://" + ls.serve(name, address, &cert, est.handler(name)) + "/.well-known/est"
	}
	const free = "127.0.0.1:0"
	hub := &hub{log: log, devices: make(map[string]*hubDevice)}
	hub.address = ls.serve("hub", free, &cas.server, hub.handler())
	dps := &dps{
		scope: accounts.IDScope, hub: hub, faults: faults, log: log,
		// Operational certificates for the EST methods, LDevIDs for the method dps.
		groups:        []*authority{cas.byLabel[labelOperational], cas.byLabel[labelLDevID]},
		registrations: make(map[string]*registration),
	}
	d := Description{
		ESTURL:          estAt("est", o.Listen, cas.server),
		ESTURLExpired:   estAt("expired", free, bad.expired),
		ESTURLWrongHost: estAt("wrong-host", free, bad.wrongHost),
		ESTURLUntrusted: estAt("untrusted", free, bad.untrusted),
		DPSURL:          "https://" + ls.serve("dps", free, &cas.server, dps.handler()),
		HubURL:          "https://" + hub.address,
		ControlURL:      "http://" + ls.serve("control", free, nil, control(faults, hold)),
		ProxyURL:        "http://" + ls.serve("proxy", free, nil, proxy(log)),
		ServerCA:        caPath(dir, "server"),
		IDevIDCA:        caPath(dir, labelIDevID),
		LDevIDCA:        caPath(dir, labelLDevID),
		OperationalCA:   caPath(dir, labelOperational),
		Accounts:        accounts,
		Log:             logPath,
	}
	if ls.err != nil {
		return ls.err
	}
	if err := writeJSON(path, d, 0o600); err != nil {
		return err
	}
	ready(path)
	<-ctx.Done()
	return nil
}

// addressesBefore are those of the lab.json of an earlier run, by the listeners' names: a lab that
// comes back where it was leaves the configuration of its clients valid.
func addressesBefore(path string) map[string]string {
	data, err := os.ReadFile(path)
	var d Description
	if err != nil || json.Unmarshal(data, &d) != nil {
		return nil
	}
	addresses := make(map[string]string)
	for name, at := range map[string]string{
		"est": d.ESTURL, "expired": d.ESTURLExpired, "wrong-host": d.ESTURLWrongHost, "untrusted": d.ESTURLUntrusted,
		"dps": d.DPSURL, "hub": d.HubURL, "control": d.ControlURL, "proxy": d.ProxyURL,
	} {
		if u, err := url.Parse(at); err == nil {
			addresses[name] = u.Host
		}
	}
	return addresses
}

// listen takes the address of an earlier run where any port will do and that one is free.
func (l *listeners) listen(name, address string) (net.Listener, error) {
	if before := l.before[name]; isLoopback(before) && strings.HasSuffix(address, ":0") {
		if listener, err := net.Listen("tcp", before); err == nil {
			return listener, nil
		}
	}
	return net.Listen("tcp", address)
}

// listeners are the HTTP servers of a lab. After a first error, serve does nothing more.
type listeners struct {
	ctx     context.Context
	before  map[string]string // addresses of an earlier run, by name
	hold    *holder
	log     *eventLog
	servers []*http.Server
	err     error
}

// serve starts a server, with TLS if it has a certificate, and returns its host:port.
func (l *listeners) serve(name, address string, cert *tls.Certificate, handler http.Handler) string {
	if l.err != nil {
		return ""
	}
	listener, err := l.listen(name, address)
	if err != nil {
		l.err = fmt.Errorf("cannot serve %s: %w", name, err)
		return ""
	}
	// No HTTP/2: aziot's clients do not speak it, and there "drop" would end a stream only.
	http1 := new(http.Protocols)
	http1.SetHTTP1(true)
	server := &http.Server{
		Handler:           handler,
		Protocols:         http1,
		BaseContext:       func(net.Listener) context.Context { return l.ctx },
		ErrorLog:          l.log.serverErrors(name),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		// No WriteTimeout: it would end the fault "stall", which is for the client's to test.
	}
	start := server.Serve
	if cert != nil {
		server.TLSConfig = &tls.Config{
			MinVersion:   tls.VersionTLS12,
			Certificates: []tls.Certificate{*cert},
			// Requested of all and verified by the handlers: each of them trusts other CAs, and a
			// refusal must reach the log and, as HTTP, the client.
			ClientAuth: tls.RequestClientCert,
		}
		if name == "est" {
			server.TLSConfig.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				if l.hold.wait(hello.Context(), holdConnection, l.hold.connection()) {
					return nil, errors.New("held until its end")
				}
				return nil, nil
			}
		}
		start = func(n net.Listener) error { return server.ServeTLS(n, "", "") }
	}
	l.servers = append(l.servers, server)
	go func() {
		if err := start(listener); !errors.Is(err, http.ErrServerClosed) {
			l.log.write(&Event{Event: "error", Listener: name, Reason: err.Error()})
		}
	}()
	return listener.Addr().String()
}

// stop lets requests that are under way end, for a moment.
func (l *listeners) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, s := range l.servers {
		if s.Shutdown(ctx) != nil {
			_ = s.Close()
		}
	}
}
