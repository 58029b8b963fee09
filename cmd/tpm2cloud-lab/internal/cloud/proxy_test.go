package cloud

import (
	"crypto/tls"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestProxy(t *testing.T) {
	t.Parallel()
	l := startLab(t)
	through, err := url.Parse(l.ProxyURL)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: l.roots},
		Proxy:           http.ProxyURL(through),
	}}
	defer client.CloseIdleConnections()
	answer, err := client.Get(l.ESTURL + "/ldevid/cacerts")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	connect := l.events()[0]
	if answer.StatusCode != 200 || connect.Event != "connect" || !strings.Contains(l.ESTURL, connect.Host) || connect.Status != 200 {
		t.Errorf("%d, logged %+v", answer.StatusCode, connect)
	}
	if answer, err := client.Get("https://est.example.com/"); err == nil {
		answer.Body.Close()
		t.Error("connected to somewhere else")
	}
	if e := l.lastEvent(); e.Status != http.StatusForbidden || e.Host != "est.example.com:443" {
		t.Errorf("logged %+v", e)
	}
	if r := l.do(request{method: "GET", url: l.ProxyURL}); r.status != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", r.status)
	}
}
