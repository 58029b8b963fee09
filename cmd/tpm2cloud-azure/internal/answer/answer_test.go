package answer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// refusal is the error that the SDK makes of an answer.
func refusal(status int, body string) error {
	request := httptest.NewRequest(http.MethodPut, "https://management.example/x", nil)
	return runtime.NewResponseError(&http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: request})
}

func arm(code, message string) string {
	return fmt.Sprintf(`{"error":{"code":%q,"message":%q}}`, code, message)
}

func TestFailed(t *testing.T) {
	for _, c := range []struct {
		name  string
		err   error
		class step.Class
		text  string
		hint  string
	}{
		{"wrong subscription", refusal(404, arm("SubscriptionNotFound", "x")), step.Configuration, "404 SubscriptionNotFound: x", "--subscription"},
		{"no right", refusal(403, arm("AuthorizationFailed", "x")), step.Permission, "403", "Contributor"},
		{"no right, another code", refusal(403, arm("Strange", "x")), step.Permission, "403 Strange", "Contributor"},
		{"token", refusal(401, arm("ExpiredAuthenticationToken", "x")), step.Permission, "401", "az login"},
		{"name", refusal(409, arm("IotHubNameNotAvailable", "x")), step.ServerRefused, "409", "--hub or --dps"},
		{"name by text", refusal(409, arm("409001", "The name 'x' is already in use.")), step.ServerRefused, "409", "--hub or --dps"},
		{"region", refusal(400, arm("LocationNotAvailableForResourceType", "x")), step.ServerRefused, "400", "--location"},
		{"quota by code", refusal(409, arm("QuotaExceeded", "x")), step.ServerRefused, "409", "--sku S1"},
		{"quota by text", refusal(400, arm("400", "Max number of Iot Hubs exceeded")), step.ServerRefused, "Max number", "--sku S1"},
		{"busy", refusal(429, arm("TooManyRequests", "Rate limit and quota")), step.Temporary, "429", "later run"},
		{"conflict", refusal(409, arm("Conflict", "x")), step.Temporary, "409", "later run"},
		{"changed", refusal(412, ""), step.Temporary, "412", "later run"},
		{"broken", refusal(500, "<html>"), step.Temporary, "Azure answered 500", "later run"},
		{"group goes", refusal(409, arm("ResourceGroupBeingDeleted", "x")), step.Temporary, "409", "until the resource group is gone"},
		{"bad request", refusal(400, arm("InvalidRequestContent", "x")), step.ServerRefused, "400", ""},
		{"of DPS", refusal(400, `{"errorCode":400004,"trackingId":"t","message":"The body\u001b[2J is bad."}`), step.ServerRefused, "Azure answered 400: The body [2J is bad", ""},
		{"no network", errors.New("dial tcp: no route to host"), step.Temporary, "no route", "network"},
		{"login", &loginError{step.Fail(step.Permission, "cannot log in")}, step.Permission, "cannot log in", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Failed("make it", c.err)
			if got := err.Error(); !strings.HasPrefix(got, "cannot make it: ") || !strings.Contains(got, c.text) || strings.ContainsAny(got, "\n\x1b") {
				t.Errorf("text %q, want %q", got, c.text)
			}
			if step.ClassOf(err) != c.class || !strings.Contains(step.HintOf(err), c.hint) || c.hint == "" && step.HintOf(err) != "" {
				t.Errorf("class %d, hint %q; want %d, %q", step.ClassOf(err), step.HintOf(err), c.class, c.hint)
			}
		})
	}
	if Failed("make it", nil) != nil {
		t.Error("nothing fails")
	}
	if err := Failed("make it", context.Canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("a signal is lost: %v", err)
	}
}

func TestRetryAfter(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": 0, "20": 20 * time.Second, "86400": longestWait, "-5": 0, "soon": 0,
		time.Now().Add(time.Minute).UTC().Format(http.TimeFormat): time.Minute,
	} {
		at := retryAfter(&http.Response{Header: http.Header{"Retry-After": {value}}})
		if got := time.Until(at); at.IsZero() != (want == 0) || want != 0 && (got < want-3*time.Second || got > want+time.Second) {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

func TestNotFound(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{refusal(404, arm("ResourceNotFound", "x")), true},
		{refusal(404, arm("ResourceGroupNotFound", "x")), true},
		{refusal(404, `{"errorCode":404201}`), true},
		{refusal(404, arm("SubscriptionNotFound", "x")), false}, // nothing may be made because of it
		{refusal(403, arm("ResourceNotFound", "x")), false},
		{errors.New("x"), false},
		{nil, false},
	} {
		if got := NotFound(c.err); got != c.want {
			t.Errorf("%v: %t", c.err, got)
		}
	}
}

func TestPrintable(t *testing.T) {
	got := Printable("a\r\nb\x00 HostName=h;SharedAccessKeyName=n;SharedAccessKey=c2VjcmV0;x sr=a&sig=c2Vj%3D&se=1 Bearer eyJ.a.b")
	if want := "a b HostName=h;SharedAccessKeyName=n;SharedAccessKey=(withheld);x sr=a&sig=(withheld)&se=1 Bearer (withheld)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := Printable(strings.Repeat("ü", 1000)); len([]rune(got)) != maxText+1 {
		t.Errorf("%d characters", len([]rune(got)))
	}
}
