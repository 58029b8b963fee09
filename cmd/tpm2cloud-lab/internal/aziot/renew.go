package aziot

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// AutoRenew says when a certificate is renewed. If its table is there at all, all three must be.
type AutoRenew struct {
	RotateKey bool   `toml:"rotate_key"`
	Threshold string `toml:"threshold"`
	Retry     string `toml:"retry"`
}

var defaultAutoRenew = AutoRenew{RotateKey: true, Threshold: "80%", Retry: "4%"}

// autoRenew reads a table that may be missing.
func (t table) autoRenew(key string) (*AutoRenew, error) {
	sub, err := t.sub(key)
	if sub == nil {
		return nil, err
	}
	var r AutoRenew
	var errs [5]error
	r.RotateKey, errs[0] = get[bool](sub, "rotate_key")
	r.Threshold, errs[1] = get[string](sub, "threshold")
	r.Retry, errs[2] = get[string](sub, "retry")
	if err := errors.Join(errs[:3]...); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	errs[3], errs[4] = checkPeriod(r.Threshold), checkPeriod(r.Retry)
	if err := errors.Join(errs[3:]...); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return &r, nil
}

// checkPeriod checks "80%", "10min" or "1day".
func checkPeriod(s string) error {
	unit := strings.TrimLeft(s, "0123456789")
	n, err := strconv.ParseInt(s[:len(s)-len(unit)], 10, 64)
	switch {
	case err != nil:
	case unit == "%" && n >= 1 && n <= 99, (unit == "min" || unit == "day") && n >= 1:
		return nil
	}
	return fmt.Errorf("%q is no period: NN%% (1 to 99), NNmin or NNday", s)
}
