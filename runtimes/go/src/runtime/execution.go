package runtime

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/open-runtimes/types-for-go/v4/openruntimes"
)

const (
	bodyLimit = 20 << 20
	// What is read and thrown away of a body beyond the limit, so that the caller comes to read the answer.
	discardLimit = 64 << 20
	maxTimeoutS  = 2_147_483
	unauthorized = `Unauthorized. Provide correct "x-open-runtimes-secret" header.`
	badTimeout   = `Header "x-open-runtimes-timeout" must be an integer greater than 0.`
	timedOut     = "Execution timed out."
)

var errBodyTooLarge = errors.New("the body is beyond the limit")

// Function is what a function's package exports as Main.
type Function func(openruntimes.Context) openruntimes.Response

// executions is all executions of this process.
type executions struct {
	settings Settings
	main     Function
	native   *native
	active   sync.Map
}

func newExecutions(settings Settings, main Function, native *native) *executions {
	return &executions{settings: settings, main: main, native: native}
}

// ServeHTTP takes a request from its head to its answer, in the protocol's order: special paths, authentication, timeout, log,
// body, function, response.
func (e *executions) ServeHTTP(writer http.ResponseWriter, request *http.Request) {
	path, _, _ := strings.Cut(request.RequestURI, "?")
	switch path {
	case "/__opr/health":
		answer(writer, http.StatusOK, []byte("OK"))
		return
	case "/__opr/timings":
		timings, _ := os.ReadFile(e.settings.TimingsFile)
		answer(writer, http.StatusOK, timings)
		return
	}
	given := request.Header.Get("x-open-runtimes-secret")
	secret := e.settings.Secret
	if secret != "" && subtle.ConstantTimeCompare([]byte(given), []byte(secret)) == 0 {
		answer(writer, http.StatusUnauthorized, []byte(unauthorized))
		return
	}
	timeout, err := parseTimeout(request.Header.Get("x-open-runtimes-timeout"))
	if err != nil {
		answer(writer, http.StatusInternalServerError, []byte(badTimeout))
		return
	}
	logger := newLogger(e.settings.LogsDir, logID(request.Header, e.settings.IsDevelopment))
	e.active.Store(logger, nil)
	defer e.active.Delete(logger)
	result := e.execute(request, logger, timeout)
	logger.close()
	header := writer.Header()
	for _, pair := range result.headers {
		header.Add(pair[0], pair[1])
	}
	header.Set("x-open-runtimes-log-id", logger.id)
	if result.status != http.StatusNoContent && result.status != http.StatusNotModified {
		header.Set("content-length", strconv.Itoa(len(result.body)))
	}
	writer.WriteHeader(result.status)
	_, _ = writer.Write(result.body)
}

// flush saves what executions have logged so far: the process ends.
func (e *executions) flush() {
	e.active.Range(func(logger, _ any) bool {
		logger.(*executionLog).flush()
		return true
	})
}

// execute answers in the function's place when its time is over. A goroutine cannot be ended: the function's goes on, unheard.
func (e *executions) execute(request *http.Request, logger *executionLog, timeout time.Duration) rendered {
	body, err := readBody(request)
	if errors.Is(err, errBodyTooLarge) {
		return failed(http.StatusRequestEntityTooLarge)
	} else if err != nil {
		logger.Error(err)
		return failed(http.StatusInternalServerError)
	}
	var expired <-chan time.Time
	if timeout > 0 {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		expired = timer.C
	}
	finished := make(chan rendered, 1)
	e.native.begin(logger)
	defer e.native.end(logger)
	go func() { finished <- e.call(request, body, logger) }()
	select {
	case result := <-finished:
		return result
	case <-expired:
		logger.Error(timedOut)
		return failed(http.StatusInternalServerError)
	}
}

// call runs the function; a panic is its error.
func (e *executions) call(request *http.Request, body []byte, logger *executionLog) (result rendered) {
	isDone := false
	defer func() {
		reason := recover()
		if isDone {
			return
		}
		if reason == nil {
			reason = "The function has ended its goroutine."
		}
		logger.Error(fmt.Sprintf("%v\n%s", reason, debug.Stack()))
		result = failed(http.StatusInternalServerError)
	}()
	context := openruntimes.NewContext(logger)
	context.Req = newRequest(request, body, e.settings)
	result, err := render(e.main(context))
	if err != nil {
		logger.Error(err)
		result = failed(http.StatusInternalServerError)
	}
	isDone = true
	return result
}

func failed(status int) rendered {
	return rendered{status: status, headers: [][2]string{{"content-type", plain}}}
}

func readBody(request *http.Request) ([]byte, error) {
	if request.ContentLength > discardLimit {
		return nil, errBodyTooLarge
	}
	if request.ContentLength > bodyLimit {
		_, err := io.CopyN(io.Discard, request.Body, request.ContentLength)
		return nil, errors.Join(errBodyTooLarge, err)
	}
	var body []byte
	var err error
	if request.ContentLength >= 0 {
		body = make([]byte, request.ContentLength)
		_, err = io.ReadFull(request.Body, body)
	} else {
		body, err = io.ReadAll(io.LimitReader(request.Body, bodyLimit+1))
	}
	if len(body) > bodyLimit {
		_, err = io.CopyN(io.Discard, request.Body, discardLimit)
		return nil, errors.Join(errBodyTooLarge, err)
	}
	return body, err
}

// parseTimeout reads whole seconds; 0 where none are asked for.
func parseTimeout(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	seconds, err := strconv.ParseUint(text, 10, 63)
	if errors.Is(err, strconv.ErrRange) {
		seconds, err = maxTimeoutS, nil
	}
	if err == nil && seconds == 0 {
		err = strconv.ErrRange
	}
	return time.Duration(min(seconds, maxTimeoutS)) * time.Second, err
}

// answer is one of the runtime itself, outside any execution.
func answer(writer http.ResponseWriter, status int, body []byte) {
	writer.Header().Set("content-type", plain)
	writer.WriteHeader(status)
	_, _ = writer.Write(body)
}
