package cloud

import (
	"crypto/tls"
	"net"
	"time"
)

// badServers are certificates that a client must turn away from before it sends anything.
type badServers struct {
	expired   tls.Certificate // ended yesterday
	wrongHost tls.Certificate // is for another name
	untrusted tls.Certificate // is of a CA that nobody knows
}

func (a *authorities) badServers() (*badServers, error) {
	now := time.Now()
	loopback := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	strangerKey, stranger, err := newCA("tpm2cloud-lab server CA", nil, nil)
	if err != nil {
		return nil, err
	}
	var b badServers
	for _, s := range []struct {
		to                *tls.Certificate
		from, until       time.Duration
		name              string
		ips               []net.IP
		signedByAStranger bool
	}{
		{to: &b.expired, from: -48 * time.Hour, until: -24 * time.Hour, name: "localhost", ips: loopback},
		{to: &b.wrongHost, from: -time.Hour, until: 24 * time.Hour, name: "est.example.net"},
		{to: &b.untrusted, from: -time.Hour, until: 24 * time.Hour, name: "localhost", ips: loopback, signedByAStranger: true},
	} {
		ca, caKey := a.serverCA, a.caKey
		if s.signedByAStranger {
			ca, caKey = stranger, strangerKey
		}
		key, cert, err := newServerCertificate(ca, caKey, now.Add(s.from), now.Add(s.until), []string{s.name}, s.ips)
		if err != nil {
			return nil, err
		}
		*s.to = tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
	}
	return &b, nil
}
