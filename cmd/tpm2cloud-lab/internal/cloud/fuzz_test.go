package cloud

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
)

// FuzzParseFault: a fault that is accepted can be listed and set again, and hits nothing that it does
// not name.
func FuzzParseFault(f *testing.F) {
	f.Add([]byte(`{"kind":"202","retry_after":"1","count":2}`))
	f.Add([]byte(`{"label":"dps","kind":"failed"}`))
	f.Add([]byte(`{"label":"idevid","operation":"cacerts","kind":"html"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		fault, err := ParseFault(data)
		if err != nil {
			return
		}
		text, err := json.Marshal(fault)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseFault(text); err != nil || again != fault {
			t.Errorf("%+v is listed as %s and read as %+v, %v", fault, text, again, err)
		}
		table := &faultTable{}
		table.add(fault)
		if _, hit := table.take("nobody's", "cacerts"); hit && fault.Label != "" {
			t.Errorf("%+v hits a label that it does not name", fault)
		}
	})
}

// FuzzPutModule: a module that the hub takes is the one that the path names, and its body is JSON that
// the hub can give back.
func FuzzPutModule(f *testing.F) {
	f.Add("", []byte(`{"moduleId":"m","deviceId":"d","authentication":{"type":"sas"}}`))
	f.Add("*", []byte(`{"moduleId":"$edgeHub","deviceId":"d","generationId":"x"}`))
	f.Add("", []byte(`{"moduleId":"m","deviceId":"d","authentication":null}`))
	f.Fuzz(func(t *testing.T, match string, body []byte) {
		d := &hubDevice{modules: map[string]*module{"$edgeHub": {ModuleID: "$edgeHub", DeviceID: "d", GenerationID: "1"}}}
		r := httptest.NewRequest("PUT", "/", nil)
		r.SetPathValue("id", "d")
		r.SetPathValue("module", "m")
		r.Header["If-Match"] = []string{match}
		status, result := putModule(d, r, body)
		if _, err := json.Marshal(result); err != nil {
			t.Errorf("%d: %v", status, err)
		}
		m := d.modules["m"]
		if (status == http.StatusOK) != (m != nil) || d.modules["$edgeHub"].GenerationID != "1" {
			t.Errorf("%d, and the modules are %v", status, d.modules)
		}
		if m != nil && (m.ModuleID != "m" || m.DeviceID != "d" || m.GenerationID == "") {
			t.Errorf("took %+v", m)
		}
	})
}
