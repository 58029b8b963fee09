// Package answer says in one line why Azure did not do something, and what to do about it. The errors of the SDK are
// pages of text with headers and bodies; of these it takes code and message.
package answer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// Error is an answer that is not the one that was hoped for.
type Error struct {
	Status  int
	Code    string // "" where the service gave none
	Message string // one line, "" where the service said nothing
}

func (e *Error) Error() string {
	text := fmt.Sprintf("Azure answered %d", e.Status)
	if e.Status/100 == 2 { // that of an operation that has ended
		text = "the operation failed:"
	}
	if e.Code != "" {
		text += " " + e.Code
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

// Failed is the error of doing something ("create the IoT Hub x"), with its class and hint.
func Failed(do string, err error) error {
	if err == nil {
		return nil
	}
	if response, ok := errors.AsType[*azcore.ResponseError](err); ok {
		return classified(do, response)
	}
	wrapped := fmt.Errorf("cannot %s: %w", do, err)
	if _, ok := errors.AsType[*loginError](err); ok || errors.Is(err, context.Canceled) {
		return wrapped // it is classified already, or a signal
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return step.As(step.Temporary, "what Azure is at work on goes on, and a later run goes on from there; --timeout gives more time", wrapped)
	}
	if u, ok := errors.AsType[*url.Error](err); ok { // its text has the whole URL once more
		address, _, _ := strings.Cut(u.URL, "?")
		wrapped = fmt.Errorf("cannot %s: %s: %w", do, address, u.Err)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return step.As(step.Refused, "what answers there is not Azure, or a proxy in between whose CA this machine must trust", wrapped)
	}
	return step.As(step.Temporary, "is there a network, and does it reach Azure? A proxy is that of HTTPS_PROXY", wrapped)
}

// NotFound tells whether the thing that was asked for is not there. It is false where the subscription is not found.
func NotFound(err error) bool {
	response, ok := errors.AsType[*azcore.ResponseError](err)
	return ok && response.StatusCode == http.StatusNotFound &&
		slices.Contains([]string{"ResourceNotFound", "ResourceGroupNotFound", "NotFound", ""}, response.ErrorCode)
}

// Gone tells whether what was to be deleted is not there, whatever the service calls that. It is false where the
// subscription is not found.
func Gone(err error) bool {
	response, ok := errors.AsType[*azcore.ResponseError](err)
	return ok && response.StatusCode == http.StatusNotFound &&
		!slices.Contains([]string{"SubscriptionNotFound", "InvalidSubscriptionId"}, response.ErrorCode)
}

// Forbidden tells whether the account may not ask for this.
func Forbidden(err error) bool {
	response, ok := errors.AsType[*azcore.ResponseError](err)
	return ok && response.StatusCode == http.StatusForbidden
}

// meaning is what a code means for us.
type meaning struct {
	codes []string
	class step.Class
	hint  string
}

var meanings = []meaning{
	{[]string{"AuthorizationFailed", "LinkedAuthorizationFailed", "Forbidden"}, step.Permission,
		`the account that is logged in may not do this: it needs the role Contributor on the subscription or the resource group ("az role assignment create")`},
	{[]string{"SubscriptionNotFound", "InvalidSubscriptionId"}, step.Configuration,
		`give the right --subscription: "az account list" shows those of the account that is logged in`},
	{[]string{"InvalidAuthenticationTokenTenant"}, step.Permission,
		`the subscription belongs to another tenant: log in there with "az login --tenant TENANT"`},
	{[]string{"InvalidAuthenticationToken", "ExpiredAuthenticationToken", "AuthenticationFailed", "InvalidAuthenticationInfo"}, step.Permission, loginHint},
	{[]string{"ReadOnlyDisabledSubscription", "SubscriptionNotRegistered", "DisallowedOperation"}, step.ServerRefused,
		"the subscription is disabled, or does not allow this: its owner has to look at it in the portal"},
	{[]string{"MissingSubscriptionRegistration"}, step.ServerRefused,
		`register the provider once: "az provider register --namespace Microsoft.Devices"`},
	{[]string{"LocationNotAvailableForResourceType", "LocationNotAvailableForResourceGroup", "NoRegisteredProviderFound", "InvalidLocation"}, step.ServerRefused,
		`choose another --location; "az provider show --namespace Microsoft.Devices" lists them`},
	{[]string{"InvalidResourceGroupLocation"}, step.ServerRefused, "the resource group exists in another location"},
	{[]string{"RequestDisallowedByPolicy"}, step.ServerRefused, "a policy of your organisation forbids this: ask who manages the subscription"},
	{[]string{"ScopeLocked"}, step.ServerRefused, `somebody has locked it against changes: "az lock list" shows by which lock`},
	{[]string{"ResourceGroupBeingDeleted", "ResourceGroupDeletionBlocked"}, step.Temporary, "wait until the resource group is gone, or take another one"},
}

// quota has no code of its own: IoT Hub answers with several.
var quota = regexp.MustCompile(`(?i)quota|max(imum)? number of`)

// nameTaken is a name that somebody else in the world has. That has several codes, too, and some answers have numbers there.
var nameTaken = regexp.MustCompile(`(?i)name(not|un)available|\bname\b.*\b(not available|unavailable|already (taken|in use))`)

// NameTaken tells whether what was to be made needs another name.
func (e *Error) NameTaken() bool { return nameTaken.MatchString(e.Code + " " + e.Message) }

const quotaHint = "the subscription has as much as it may have; it may have one free hub (F1): take --sku S1, delete what is not needed, or ask Azure for more"

func classified(do string, response *azcore.ResponseError) error {
	e := &Error{Status: response.StatusCode, Code: response.ErrorCode, Message: message(response.RawResponse)}
	err := &step.Error{Err: fmt.Errorf("cannot %s: %w", do, e)}
	err.Class, err.Hint = e.class()
	if err.Class == step.Temporary {
		err.NotBefore = retryAfter(response.RawResponse)
	}
	return err
}

func (e *Error) class() (step.Class, string) {
	for _, m := range meanings {
		if slices.Contains(m.codes, e.Code) {
			return m.class, m.hint
		}
	}
	switch s := e.Status; {
	case s == http.StatusTooManyRequests:
		return step.Temporary, "Azure has too many requests of this subscription; a later run goes on from here"
	case quota.MatchString(e.Code + " " + e.Message):
		return step.ServerRefused, quotaHint
	case e.NameTaken():
		return step.ServerRefused, "choose another name with --hub or --dps: they are unique in all of Azure"
	case s == http.StatusUnauthorized:
		return step.Permission, loginHint
	case s == http.StatusForbidden:
		return step.Permission, meanings[0].hint
	case s == http.StatusConflict, s == http.StatusPreconditionFailed, s == http.StatusRequestTimeout, s >= 500:
		return step.Temporary, "something else is being done to it, or Azure has a problem; a later run goes on from here"
	}
	return step.ServerRefused, ""
}

// longestWait bounds what a service may ask for.
const longestWait = 10 * time.Minute

func retryAfter(response *http.Response) time.Time {
	if response == nil {
		return time.Time{}
	}
	value := response.Header.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
		return time.Now().Add(min(time.Duration(seconds)*time.Second, longestWait))
	}
	if at, err := http.ParseTime(value); err == nil {
		return time.Now().Add(min(max(time.Until(at), 0), longestWait))
	}
	return time.Time{}
}

// message finds what the service said: the resource manager wraps it in "error", the Device Provisioning Service does not.
func message(response *http.Response) string {
	if response == nil {
		return ""
	}
	body, err := runtime.Payload(response)
	if err != nil {
		return ""
	}
	var said struct {
		Message string `json:"message"`
		Error   struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal(body, &said); err != nil {
		return ""
	}
	if said.Error.Message != "" {
		return Printable(said.Error.Message)
	}
	return Printable(said.Message)
}

// secret is what a service might repeat of a request.
var secret = regexp.MustCompile(`(?i)(SharedAccessKey=|sig=|Bearer )[^;&"\s]+`)

const maxText = 400

// Printable makes a line of text without control characters and keys.
func Printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
	s = secret.ReplaceAllString(strings.Join(strings.Fields(s), " "), "$1(withheld)")
	if runes := []rune(s); len(runes) > maxText {
		s = string(runes[:maxText]) + "…"
	}
	return strings.TrimSuffix(s, ".")
}

// --- logging in ---------------------------------------------------------------

const loginHint = `log in: "az login", or AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET (or AZURE_CLIENT_CERTIFICATE_PATH) in the environment`

// loginError is that of a credential. No request that needs it is worth another try at once.
type loginError struct{ error }

func (e *loginError) Unwrap() error { return e.error }

// NonRetriable tells the SDK so.
func (*loginError) NonRetriable() {}

// Credential is a credential whose errors have class and hint.
type Credential struct{ azcore.TokenCredential }

// GetToken implements [azcore.TokenCredential].
func (c Credential) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	token, err := c.TokenCredential.GetToken(ctx, o)
	if err == nil || ctx.Err() != nil {
		return token, err
	}
	return token, &loginError{NotLoggedIn(err)}
}

// NotLoggedIn is the error of a credential, with class and hint.
func NotLoggedIn(err error) error {
	failed, ok := errors.AsType[*azidentity.AuthenticationFailedError](err)
	switch {
	case !ok: // no credential was found
		return step.As(step.Permission, loginHint, fmt.Errorf("cannot log in to Azure: %s", Printable(err.Error())))
	case failed.RawResponse == nil: // one was, and nobody answered
		return step.As(step.Temporary, "is there a network, and does it reach Microsoft Entra? "+loginHint, fmt.Errorf("cannot log in to Azure: %s", Printable(err.Error())))
	}
	var said struct {
		Description string `json:"error_description"`
	}
	if body, err := runtime.Payload(failed.RawResponse); err == nil {
		_ = json.Unmarshal(body, &said) // what is no JSON has no description
	}
	// After its first line, a description has identifiers and the time.
	first, _, _ := strings.Cut(said.Description, " Trace ID:")
	first, _, _ = strings.Cut(first, "\r\n")
	refused := &Error{Status: failed.RawResponse.StatusCode, Message: Printable(first)}
	class := step.Permission
	if refused.Status >= 500 || refused.Status == http.StatusTooManyRequests {
		class = step.Temporary
	}
	return step.As(class, loginHint, fmt.Errorf("cannot log in to Azure: %w", refused))
}
