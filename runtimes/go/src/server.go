// The HTTP server of the go runtime, with the function in it: the sandbox's main process.
package main

import (
	"os"

	"openruntimes/handler"

	"server/runtime"
)

func main() {
	runtime.Serve(runtime.SettingsFromEnvironment(os.Getenv), handler.Main)
}
