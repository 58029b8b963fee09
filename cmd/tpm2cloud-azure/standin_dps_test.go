package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// serveDPS is the data plane of the one service that there is.
func (a *azure) serveDPS(w http.ResponseWriter, r *http.Request, body []byte) {
	if why := a.unauthorised(r); why != "" {
		dpsError(w, http.StatusUnauthorized, "401002", why)
		return
	}
	if r.URL.RawQuery != "api-version=2021-10-01" {
		a.violate("dps: %s %s has another api-version", r.Method, r.URL)
	}
	var d *service
	for _, d = range a.state.services {
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case d == nil:
		dpsError(w, http.StatusNotFound, "404000", "no service")
	case len(parts) == 2 && parts[0] == "enrollmentGroups" && r.Method == http.MethodGet:
		if g := d.groups[parts[1]]; g != nil {
			answerJSON(w, http.StatusOK, g)
			return
		}
		dpsError(w, http.StatusNotFound, "404201", "Enrollment not found.")
	case len(parts) == 2 && parts[0] == "enrollmentGroups" && r.Method == http.MethodPut:
		a.putGroup(w, r, body, d, parts[1])
	case len(parts) == 3 && parts[0] == "registrations" && parts[2] == "query" && r.Method == http.MethodPost:
		a.query(w, r, body, d, parts[1])
	default:
		a.violate("dps: no route for %s %s", r.Method, r.URL)
		dpsError(w, http.StatusMethodNotAllowed, "405000", "no route")
	}
}

// unauthorised tells why a request may not be served.
func (a *azure) unauthorised(r *http.Request) string {
	header := r.Header.Get("Authorization")
	if bearer, ok := strings.CutPrefix(header, "Bearer "); ok {
		if bearer != token(dpsAudience) {
			a.violate("dps: a token that was made for somebody else: %q", bearer)
			return "wrong audience"
		}
		return ""
	}
	text, ok := strings.CutPrefix(header, "SharedAccessSignature ")
	fields, err := url.ParseQuery(text)
	if !ok || err != nil || len(fields) != 4 {
		a.violate("dps: authorization %q", header)
		return "no signature"
	}
	key, _ := base64.StdEncoding.DecodeString(dpsKey)
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\n%s", url.QueryEscape(fields.Get("sr")), fields.Get("se"))
	signature, _ := base64.StdEncoding.DecodeString(fields.Get("sig"))
	end, err := strconv.ParseInt(fields.Get("se"), 10, 64)
	left := time.Until(time.Unix(end, 0))
	if err != nil || fields.Get("sr") != r.Host || fields.Get("skn") != "provisioningserviceowner" ||
		!hmac.Equal(signature, mac.Sum(nil)) || left <= 0 || left > time.Hour {
		a.violate("dps: the signature %q is not good for %s", text, r.Host)
		return "wrong signature"
	}
	return ""
}

// What a group may have, and what it must.
type groupSchema struct {
	ID          string `json:"enrollmentGroupId"`
	Attestation struct {
		Type string `json:"type"`
		X509 struct {
			References struct {
				Primary   string `json:"primary"`
				Secondary string `json:"secondary"`
			} `json:"caReferences"`
		} `json:"x509"`
	} `json:"attestation"`
	Capabilities *struct {
		IoTEdge *bool `json:"iotEdge"`
	} `json:"capabilities"`
	ProvisioningStatus string `json:"provisioningStatus"`
	AllocationPolicy   string `json:"allocationPolicy"`
	ReprovisionPolicy  *struct {
		UpdateHubAssignment *bool `json:"updateHubAssignment"`
		MigrateDeviceData   *bool `json:"migrateDeviceData"`
	} `json:"reprovisionPolicy"`
	InitialTwin json.RawMessage `json:"initialTwin"`
	ETag        string          `json:"etag"`
	Created     string          `json:"createdDateTimeUtc"`
}

func (a *azure) putGroup(w http.ResponseWriter, r *http.Request, body []byte, d *service, id string) {
	var g groupSchema
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&g); err != nil || r.Header.Get("Content-Type") != "application/json" || g.ID != id {
		a.violate("dps: PUT of the group %s: %v, %q\n%s", id, err, r.Header.Get("Content-Type"), body)
		dpsError(w, http.StatusBadRequest, "400004", "bad format")
		return
	}
	refs := g.Attestation.X509.References
	for _, name := range []string{refs.Primary, refs.Secondary} {
		if name == "" && name != refs.Primary {
			continue
		}
		if c := d.certificates[name]; c == nil || !*c.Properties.IsVerified {
			dpsError(w, http.StatusBadRequest, "400004", "The CA certificate "+name+" is not there, or not verified.")
			return
		}
	}
	old, match := d.groups[id], r.Header.Get("If-Match")
	switch {
	case old == nil && match != "", old != nil && match != "" && match != `"`+old["etag"].(string)+`"`:
		dpsError(w, http.StatusPreconditionFailed, "412001", "The etag is another one.")
		return
	case old != nil && match == "":
		dpsError(w, http.StatusConflict, "409201", "The enrolment exists.")
		return
	}
	var kept map[string]any
	_ = json.Unmarshal(body, &kept) // it is JSON: it was read above
	a.state.verifications++
	kept["etag"] = fmt.Sprintf("G%d", a.state.verifications)
	kept["createdDateTimeUtc"] = "2026-01-01T00:00:00Z"
	d.groups[id] = kept
	answerJSON(w, http.StatusOK, kept)
}

func (a *azure) query(w http.ResponseWriter, r *http.Request, body []byte, d *service, id string) {
	if len(body) > 0 || r.Header.Get("x-ms-max-item-count") != "100" {
		a.violate("dps: query with the body %q and %q items", body, r.Header.Get("x-ms-max-item-count"))
	}
	if d.groups[id] == nil {
		dpsError(w, http.StatusNotFound, "404201", "Enrollment not found.")
		return
	}
	begin, _ := strconv.Atoi(r.Header.Get("x-ms-continuation"))
	end := min(begin+2, len(d.registrations)) // the service may give fewer than it was asked for
	if end < len(d.registrations) {
		w.Header().Set("x-ms-continuation", strconv.Itoa(end))
	}
	page := d.registrations[begin:end]
	if page == nil {
		page = []map[string]any{}
	}
	answerJSON(w, http.StatusOK, page)
}
