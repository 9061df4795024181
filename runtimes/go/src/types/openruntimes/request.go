package openruntimes

import (
	"encoding/json"
	"errors"
	"strings"
)

// ContextRequest is the HTTP request as the function sees it. Header names are lower-cased.
type ContextRequest struct {
	bodyBinary  []byte
	Headers     map[string]string
	Method      string
	Url         string
	Path        string
	Port        int
	Scheme      string
	Host        string
	QueryString string
	Query       map[string]string
}

// SetBodyBinary gives the request its body.
func (r *ContextRequest) SetBodyBinary(bytes []byte) {
	r.bodyBinary = bytes
}

// BodyBinary is the body as it came.
func (r ContextRequest) BodyBinary() []byte {
	return r.bodyBinary
}

// BodyText is the body as text.
func (r ContextRequest) BodyText() string {
	return string(r.bodyBinary)
}

// BodyRaw is the old name of BodyText.
func (r ContextRequest) BodyRaw() string {
	return r.BodyText()
}

// BodyJson parses the body into v, whatever its content type.
func (r ContextRequest) BodyJson(v any) error {
	if err := json.Unmarshal(r.bodyBinary, v); err != nil {
		return errors.New("could not parse body into a JSON: " + err.Error())
	}
	return nil
}

// Body is parsed JSON where the content type says so, an empty object where there is none to parse; text otherwise.
func (r ContextRequest) Body() any {
	if !strings.HasPrefix(strings.ToLower(r.Headers["content-type"]), "application/json") {
		return r.BodyText()
	}
	var parsed any
	if err := json.Unmarshal(r.bodyBinary, &parsed); err != nil || parsed == nil {
		return map[string]any{}
	}
	return parsed
}
