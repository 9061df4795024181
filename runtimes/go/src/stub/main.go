// Package handler is a function that is built with the image, so that the next ones find all else compiled.
package handler

import "github.com/open-runtimes/types-for-go/v4/openruntimes"

// Main is the function.
func Main(Context openruntimes.Context) openruntimes.Response {
	return Context.Res.Empty()
}
