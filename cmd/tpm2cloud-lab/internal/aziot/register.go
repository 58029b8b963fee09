package aziot

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Versions of the two APIs.
const (
	dpsAPIVersion = "2021-06-01"
	hubAPIVersion = "2017-11-08-preview"
)

// cloud is identityd's connection to DPS and the hub: TLS with the device's whole certificate
// chain, and trust in nothing but the system's store.
type cloud struct {
	client *http.Client
	poll   time.Duration
}

func newCloud(pair *tls.Certificate, trust *x509.CertPool, poll time.Duration) *cloud {
	return &cloud{
		client: newHTTPClient(&tls.Config{
			RootCAs: trust, Certificates: []tls.Certificate{*pair}, MinVersion: tls.VersionTLS12,
		}),
		poll: poll,
	}
}

// dpsAnswer is what DPS says of a registration under way.
type dpsAnswer struct {
	OperationID string `json:"operationId"`
	Status      string `json:"status"`
	State       *struct {
		RegistrationID string `json:"registrationId"`
		AssignedHub    string `json:"assignedHub"`
		DeviceID       string `json:"deviceId"`
		ErrorCode      int    `json:"errorCode"`
		ErrorMessage   string `json:"errorMessage"`
	} `json:"registrationState"`
}

// register registers with DPS and waits until it is assigned to a hub.
func (c *cloud) register(ctx context.Context, endpoint, scope, id string) (hub, device string, err error) {
	base, err := url.Parse(endpoint)
	if err != nil {
		return "", "", fmt.Errorf("cannot register with DPS: %w", err)
	}
	version := url.Values{"api-version": {dpsAPIVersion}}.Encode()
	registration := base.Scheme + "://" + base.Host + "/" + url.PathEscape(scope) + "/registrations/" + url.PathEscape(id)
	body := map[string]string{"registrationId": id}

	var a dpsAnswer
	err = c.call(ctx, http.MethodPut, registration+"/register?"+version, body, &a, http.StatusAccepted)
	operation := a.OperationID
	for err == nil && a.Status == "assigning" {
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(c.poll): // whatever Retry-After says
			a = dpsAnswer{}
			err = c.call(ctx, http.MethodGet, registration+"/operations/"+url.PathEscape(operation)+"?"+version, nil, &a,
				http.StatusOK, http.StatusAccepted)
		}
	}
	switch {
	case err != nil:
	case a.State == nil || a.State.RegistrationID == "":
		err = fmt.Errorf("the answer %q lacks registrationState.registrationId", a.Status)
	case a.Status != "assigned":
		err = fmt.Errorf("status %q, error %d: %s", a.Status, a.State.ErrorCode, a.State.ErrorMessage)
	case a.State.AssignedHub == "" || a.State.DeviceID == "":
		err = errors.New("the answer lacks assignedHub or deviceId")
	default:
		return a.State.AssignedHub, a.State.DeviceID, nil
	}
	return "", "", fmt.Errorf("cannot register with DPS as %q: %w", id, err)
}

// modules lists the modules of the device at its hub.
func (c *cloud) modules(ctx context.Context, hub, device string) ([]string, error) {
	var list []struct {
		ModuleID     string `json:"moduleId"`
		GenerationID string `json:"generationId"`
	}
	link := fmt.Sprintf("https://%s/devices/%s/modules?api-version=%s", hub, url.PathEscape(device), hubAPIVersion)
	if err := c.call(ctx, http.MethodGet, link, nil, &list, http.StatusOK); err != nil {
		return nil, fmt.Errorf("cannot list modules at the hub: %w", err)
	}
	var names []string
	for _, m := range list {
		names = append(names, m.ModuleID)
	}
	return names, nil
}

func (c *cloud) call(ctx context.Context, method, link string, body, result any, want ...int) error {
	var content io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(ctx, method, link, content)
	if err != nil {
		return err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return err
	}
	for _, status := range want {
		if answer.StatusCode == status {
			return json.Unmarshal(data, result)
		}
	}
	return fmt.Errorf("%s answered %s: %s", r.URL.Host, answer.Status, strings.TrimSpace(string(data)))
}
