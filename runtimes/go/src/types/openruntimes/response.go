package openruntimes

import (
	"encoding/json"
	"maps"
)

// Response is what a function returns. A status of 0 means 200. Cookies of `set-cookie` are separated by line ends.
type Response struct {
	Body       []byte
	StatusCode int
	Headers    map[string]string
}

// ResponseOption changes a response that is being made.
type ResponseOption func(*Response)

// ContextResponse makes responses and sends nothing: the one that is returned counts.
type ContextResponse struct{}

// WithHeaders sets the headers.
func (ContextResponse) WithHeaders(headers map[string]string) ResponseOption {
	return func(response *Response) { response.Headers = headers }
}

// WithStatusCode sets the status, which is 200 otherwise (301 of a redirect).
func (ContextResponse) WithStatusCode(statusCode int) ResponseOption {
	return func(response *Response) { response.StatusCode = statusCode }
}

// Binary answers with bytes.
func (ContextResponse) Binary(bytes []byte, options ...ResponseOption) Response {
	response := Response{Body: bytes, StatusCode: 200, Headers: map[string]string{}}
	for _, option := range options {
		option(&response)
	}
	return response
}

// Text answers with a text.
func (r ContextResponse) Text(body string, options ...ResponseOption) Response {
	return r.Binary([]byte(body), options...)
}

// Send is the old name of Text.
func (r ContextResponse) Send(body string, options ...ResponseOption) Response {
	return r.Text(body, options...)
}

// Json answers with a value as JSON.
func (r ContextResponse) Json(value any, options ...ResponseOption) Response {
	body, err := json.Marshal(value)
	if err != nil {
		return r.Text("Error encoding JSON.", append(options, r.WithStatusCode(500))...)
	}
	return with(r.Binary(body, options...), "content-type", "application/json")
}

// Empty answers with status 204 and nothing.
func (r ContextResponse) Empty() Response {
	return r.Text("", r.WithStatusCode(204))
}

// Redirect sends the caller elsewhere.
func (r ContextResponse) Redirect(url string, options ...ResponseOption) Response {
	moved := []ResponseOption{r.WithStatusCode(301)}
	return with(r.Text("", append(moved, options...)...), "location", url)
}

// with leaves the function's own map as it is.
func with(response Response, name, value string) Response {
	headers := map[string]string{name: value}
	maps.Copy(headers, response.Headers)
	headers[name] = value
	response.Headers = headers
	return response
}
