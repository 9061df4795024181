// Package handler says what a module says that the build fetches.
package handler

import (
	"example.org/greeting"
	"github.com/open-runtimes/types-for-go/v4/openruntimes"
)

// Main is the function.
func Main(Context openruntimes.Context) openruntimes.Response {
	return Context.Res.Text(greeting.Text)
}
