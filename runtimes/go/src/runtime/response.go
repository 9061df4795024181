package runtime

import (
	"fmt"
	"strings"

	"github.com/open-runtimes/types-for-go/v4/openruntimes"
)

const plain = "text/plain; charset=utf-8"

// The framing of the message is the server's.
var framing = map[string]bool{
	"content-length": true, "transfer-encoding": true, "connection": true, "keep-alive": true, "upgrade": true, "trailer": true,
}

// rendered is a response ready to send.
type rendered struct {
	status  int
	headers [][2]string
	body    []byte
}

// render checks what a function returned, and fails for what cannot be sent.
func render(response openruntimes.Response) (rendered, error) {
	status := response.StatusCode
	if status == 0 {
		status = 200
	}
	if status < 200 || status > 999 {
		return rendered{}, fmt.Errorf("Invalid status code: %d", status)
	}
	result := rendered{status: status, body: response.Body}
	contentType := plain
	for name, value := range response.Headers {
		name = strings.ToLower(name)
		values := []string{value}
		if name == "set-cookie" {
			values = strings.Split(value, "\n")
		}
		switch {
		case strings.HasPrefix(name, control) || framing[name]:
			continue
		case !isToken(name):
			return rendered{}, fmt.Errorf("Invalid header name: %q.", name)
		case name == "content-type":
			contentType = withCharset(value)
			values = []string{contentType}
		}
		for _, one := range values {
			if strings.ContainsAny(one, "\r\n\x00") {
				return rendered{}, fmt.Errorf("Invalid value of header %s.", name)
			}
			if name != "content-type" {
				result.headers = append(result.headers, [2]string{name, one})
			}
		}
	}
	result.headers = append(result.headers, [2]string{"content-type", contentType})
	return result, nil
}

func withCharset(value string) string {
	lower := strings.ToLower(value)
	if strings.HasPrefix(lower, "multipart/") || strings.Contains(lower, "charset=") {
		return value
	}
	return lower + "; charset=utf-8"
}

// isToken tells whether a lower-cased text may be a header's name (RFC 9110, 5.6.2).
func isToken(name string) bool {
	const allowed = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
	return name != "" && strings.Trim(name, allowed) == ""
}
