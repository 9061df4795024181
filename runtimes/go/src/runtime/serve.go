package runtime

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	// How long a stopping server waits for executions that are under way.
	drain = 5 * time.Second
	// How long a caller may take for a request's head, and a connection be idle.
	headPatience = time.Minute
	headLimit    = 128 << 10
)

// Serve owns the listening socket, the signals and the life of the process; what a request means is [executions]' matter. It
// binds, announces readiness, and serves until a signal.
func Serve(settings Settings, main Function) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	listener, err := net.Listen("tcp", settings.Address)
	if err != nil {
		fail(err)
	}
	fmt.Println("HTTP server successfully started!")
	noteStartup(settings)
	native, err := captureOutput()
	if err != nil {
		fail(err)
	}
	executions := newExecutions(settings, main, native)
	server := &http.Server{Handler: executions, ReadHeaderTimeout: headPatience, MaxHeaderBytes: headLimit}
	go func() { fail(server.Serve(listener)) }()
	<-stop
	// Serve returns at once when Shutdown begins: its goroutine must not end the process with an error.
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	_ = server.Shutdown(ctx)
	executions.flush()
}

func fail(err error) {
	if err == http.ErrServerClosed {
		return
	}
	fmt.Fprintln(os.Stderr, "HTTP server failed:", err)
	os.Exit(1)
}

// noteStartup writes the `startup` metric, where the start lifecycle told when it began. Timings are a help, not a need.
func noteStartup(settings Settings) {
	if settings.StartupBegan.IsZero() {
		return
	}
	file, err := os.OpenFile(settings.TimingsFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return
	}
	defer file.Close()
	fmt.Fprintf(file, "startup=%.3f\n", time.Since(settings.StartupBegan).Seconds())
}
