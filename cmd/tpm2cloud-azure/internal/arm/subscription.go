package arm

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azarm "github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"github.com/tpm2cloud/tpm2cloud/cmd/tpm2cloud-azure/internal/answer"
	"github.com/tpm2cloud/tpm2cloud/pkg/step"
)

// TheSubscription is the one that the account sees. Where there are several, the user has to choose: a deployment in the
// wrong one is found on the bill.
func TheSubscription(ctx context.Context, credential azcore.TokenCredential, options *azarm.ClientOptions) (string, error) {
	const do = "list the subscriptions"
	client, err := azarm.NewClient("tpm2cloud-azure", "v1.0.0", credential, options)
	if err != nil {
		return "", err
	}
	type subscription struct {
		ID    string `json:"subscriptionId"`
		Name  string `json:"displayName"`
		State string `json:"state"`
	}
	var enabled []subscription
	for next := runtime.JoinPaths(client.Endpoint(), "/subscriptions?api-version=2022-12-01"); next != ""; {
		request, err := runtime.NewRequest(ctx, http.MethodGet, next)
		if err != nil {
			return "", answer.Failed(do, err)
		}
		response, err := client.Pipeline().Do(request)
		if err != nil {
			return "", answer.Failed(do, err)
		}
		if !runtime.HasStatusCode(response, http.StatusOK) {
			return "", answer.Failed(do, runtime.NewResponseError(response))
		}
		var page struct {
			Value    []subscription `json:"value"`
			NextLink string         `json:"nextLink"`
		}
		if err := runtime.UnmarshalAsJSON(response, &page); err != nil {
			return "", answer.Failed(do, err)
		}
		for _, s := range page.Value {
			if s.State == "Enabled" {
				enabled = append(enabled, s)
			}
		}
		next = page.NextLink
	}
	switch len(enabled) {
	case 0:
		return "", step.As(step.Permission, `log in with an account that has one, or in its tenant: "az login --tenant TENANT"`,
			fmt.Errorf("cannot find a subscription: the account that is logged in sees none that is enabled"))
	case 1:
		return enabled[0].ID, nil
	}
	names := make([]string, len(enabled))
	for i, s := range enabled {
		names[i] = fmt.Sprintf("%s (%s)", s.ID, s.Name)
	}
	return "", step.As(step.Usage, "give one with --subscription, or AZURE_SUBSCRIPTION_ID in the environment",
		fmt.Errorf("cannot choose among %d subscriptions: %s", len(enabled), strings.Join(names, ", ")))
}
