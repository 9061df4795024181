// Package runtime is the server of the Open Runtimes v5 protocol.
package runtime

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// Settings is what the server is told by its environment, read once at start. The paths and the port are the protocol's own.
type Settings struct {
	Address     string
	LogsDir     string
	TimingsFile string
	// When the start lifecycle began; zero where it did not tell.
	StartupBegan time.Time
	Secret       string
	// The caller's credential with that secret, which is not the function's to see.
	OwnCredential   string
	IsDevelopment   bool
	EnforcedHeaders map[string]string
}

// SettingsFromEnvironment reads the variables by `env`.
func SettingsFromEnvironment(env func(string) string) Settings {
	settings := Settings{
		Address:         ":3000",
		LogsDir:         "/mnt/logs",
		TimingsFile:     "/mnt/telemetry/timings.txt",
		Secret:          env("OPEN_RUNTIMES_SECRET"),
		IsDevelopment:   env("OPEN_RUNTIMES_ENV") == "development",
		EnforcedHeaders: parseEnforcedHeaders(env("OPEN_RUNTIMES_HEADERS")),
	}
	if settings.Secret != "" {
		settings.OwnCredential = "Basic " + base64.StdEncoding.EncodeToString([]byte("opr:"+settings.Secret))
	}
	if began, err := strconv.ParseFloat(env("OPEN_RUNTIMES_STARTUP_BEGAN"), 64); err == nil {
		settings.StartupBegan = time.UnixMicro(int64(began * 1e6))
	}
	return settings
}

// Lower-cased names with text values; anything that is no JSON object means none.
func parseEnforcedHeaders(text string) map[string]string {
	var parsed map[string]json.RawMessage
	if json.Unmarshal([]byte(text), &parsed) != nil {
		return nil
	}
	headers := make(map[string]string, len(parsed))
	for name, raw := range parsed {
		var value string
		if json.Unmarshal(raw, &value) != nil {
			value = string(raw)
		}
		headers[strings.ToLower(name)] = value
	}
	return headers
}
