package cloud

import (
	"encoding/json"
	"io"
	"net/http"
)

// control switches faults at run time: POST /fault adds one, GET lists them, DELETE clears them.
// holder.control has the rest. It is plain HTTP, for a shell script's sake, on a listener of its own that no client is told of.
func control(faults *faultTable, hold *holder) http.Handler {
	mux := http.NewServeMux()
	hold.control(mux)
	mux.HandleFunc("POST /fault", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<16))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f, err := ParseFault(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		faults.add(f)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /fault", func(w http.ResponseWriter, _ *http.Request) {
		writeJSONAnswer(w, http.StatusOK, faults.list())
	})
	mux.HandleFunc("DELETE /fault", func(w http.ResponseWriter, _ *http.Request) {
		faults.clear()
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

func writeJSONAnswer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	// A client that went away is no concern of the server's.
	_ = json.NewEncoder(w).Encode(v)
}
