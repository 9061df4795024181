package runtime

import (
	"maps"
	"net/http"
	"strconv"
	"strings"

	"github.com/open-runtimes/types-for-go/v4/openruntimes"
)

const control = "x-open-runtimes-"

// newRequest is the HTTP request as the function sees it: path and query raw, header names lower-cased.
func newRequest(request *http.Request, body []byte, settings Settings) openruntimes.ContextRequest {
	scheme := request.Header.Get("x-forwarded-proto")
	if scheme == "" {
		scheme = "http"
	}
	defaultPort := 80
	if scheme == "https" {
		defaultPort = 443
	}
	host, port := authority(request.Host, defaultPort)
	path, queryString, _ := strings.Cut(originForm(request.RequestURI), "?")
	url := scheme + "://" + host
	if port != defaultPort {
		url += ":" + strconv.Itoa(port)
	}
	url += path
	if queryString != "" {
		url += "?" + queryString
	}
	seen := openruntimes.ContextRequest{
		Headers:     functionHeaders(request, settings),
		Method:      strings.ToUpper(request.Method),
		Url:         url,
		Path:        path,
		Port:        port,
		Scheme:      scheme,
		Host:        host,
		QueryString: queryString,
		Query:       parseQuery(queryString),
	}
	seen.SetBodyBinary(body)
	return seen
}

// originForm is `/path?query` also where a proxy sent the absolute form.
func originForm(target string) string {
	_, rest, isAbsolute := strings.Cut(target, "://")
	if strings.HasPrefix(target, "/") || !isAbsolute {
		return target
	}
	_, path, _ := strings.Cut(rest, "/")
	return "/" + path
}

func authority(header string, defaultPort int) (string, int) {
	start := 0
	if strings.HasPrefix(header, "[") {
		start = max(strings.Index(header, "]"), 0)
	}
	host, text, _ := strings.Cut(header[start:], ":")
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		port = uint64(defaultPort)
	}
	return header[:start] + host, int(port)
}

// parseQuery takes raw text, split at `&` and at the first `=`; the last of equal keys wins.
func parseQuery(text string) map[string]string {
	query := map[string]string{}
	for item := range strings.SplitSeq(text, "&") {
		if key, value, _ := strings.Cut(item, "="); key != "" {
			query[key] = value
		}
	}
	return query
}

// functionHeaders leaves out the runtime's own headers and the caller's own credential; the enforced ones win.
func functionHeaders(request *http.Request, settings Settings) map[string]string {
	headers := map[string]string{"host": request.Host}
	for name, values := range request.Header {
		name = strings.ToLower(name)
		switch {
		case strings.HasPrefix(name, control):
		case name == "authorization":
			if len(values) > 1 && values[0] == settings.OwnCredential {
				values = values[1:]
			}
			if values[0] != settings.OwnCredential {
				headers[name] = values[0]
			}
		case name == "content-type":
			headers[name] = values[0]
		case name == "cookie":
			headers[name] = strings.Join(values, "; ")
		default:
			headers[name] = strings.Join(values, ", ")
		}
	}
	maps.Copy(headers, settings.EnforcedHeaders)
	return headers
}
