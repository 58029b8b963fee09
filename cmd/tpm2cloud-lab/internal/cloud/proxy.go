package cloud

import (
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// proxy is an HTTP CONNECT proxy that logs where clients go. It connects to loopback only: it
// stands on a developer's machine and must open no way out of it.
func proxy(log *eventLog) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		event := &Event{Event: "connect", Host: r.Host, Remote: r.RemoteAddr}
		refuse := func(status int, reason string) {
			event.Status, event.Reason = status, reason
			log.write(event)
			http.Error(w, reason, status)
		}
		if r.Method != http.MethodConnect {
			refuse(http.StatusMethodNotAllowed, "this proxy knows CONNECT only")
			return
		}
		if !isLoopback(r.Host) {
			refuse(http.StatusForbidden, "this proxy connects to loopback only")
			return
		}
		server, err := net.DialTimeout("tcp", r.Host, 10*time.Second)
		if err != nil {
			refuse(http.StatusBadGateway, err.Error())
			return
		}
		defer server.Close()
		client, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			refuse(http.StatusInternalServerError, err.Error())
			return
		}
		defer client.Close()
		// The server's timeouts were for the request; a tunnel lives as long as its ends do.
		_ = client.SetDeadline(time.Time{})
		event.Status = http.StatusOK
		log.write(event)
		if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
			return
		}
		var both sync.WaitGroup
		both.Go(func() { pipe(server, buffered) })
		both.Go(func() { pipe(client, server) })
		both.Wait()
	})
}

// pipe copies one direction and passes its end on.
func pipe(to net.Conn, from io.Reader) {
	_, _ = io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}

// isLoopback tells whether host:port is surely on this machine.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
