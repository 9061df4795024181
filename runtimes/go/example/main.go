// Package handler says hello and tells what it was asked: `curl http://localhost:3000/anything?name=you`.
package handler

import (
	"runtime"

	"github.com/open-runtimes/types-for-go/v4/openruntimes"
)

// Main is the function.
func Main(Context openruntimes.Context) openruntimes.Response {
	name, isGiven := Context.Req.Query["name"]
	if !isGiven {
		name = "world"
	}
	Context.Log("Said hello to " + name + ".")
	return Context.Res.Json(map[string]any{
		"message": "Hello, " + name + "!",
		"method":  Context.Req.Method,
		"path":    Context.Req.Path,
		"runtime": runtime.Version(),
	})
}
