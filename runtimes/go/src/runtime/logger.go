package runtime

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	recordLimit  = 8_000
	truncated    = "... Log truncated due to size limit (8000 characters)"
	nativeNotice = "Native logs detected. Use context.Log() or context.Error() for better experience.\n"
	bufferLimit  = 64 << 10
	// Callers read 5 MiB of a file and say so when there is more: what lies further back would only fill the disk.
	fileLimit = 5<<20 + 64<<10
)

var safeID = regexp.MustCompile(`\A[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\z`)

// logFile is the buffered text of one log file. It is written when there is something to write, at the latest before the
// response leaves, so that a silent function costs no file; failing to write never fails the execution.
type logFile struct {
	path   string
	buffer []byte
	room   int
}

func (f *logFile) write(text string) {
	text = text[:min(len(text), max(f.room-len(f.buffer), 0))]
	f.buffer = append(f.buffer, text...)
	if len(f.buffer) > bufferLimit {
		f.flush()
	}
}

func (f *logFile) flush() {
	if len(f.buffer) == 0 {
		return
	}
	file, err := os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		f.room = 0
	} else {
		_, _ = file.Write(f.buffer)
		_ = file.Close()
		f.room -= len(f.buffer)
	}
	f.buffer = f.buffer[:0]
}

// executionLog is the log of one execution; after close nothing is written any more. An empty id means that its caller wants
// none.
type executionLog struct {
	id string

	lock         sync.Mutex
	isOpen       bool
	logs, errors logFile
	isNative     bool
	isMidLine    bool
}

func newLogger(directory, id string) *executionLog {
	file := func(stream string) logFile {
		return logFile{path: directory + "/" + id + "_" + stream + ".log", room: fileLimit}
	}
	return &executionLog{id: id, isOpen: id != "", logs: file("logs"), errors: file("errors")}
}

func (l *executionLog) Log(messages ...any) {
	text := record(messages)
	l.write(func() {
		l.endLine()
		l.logs.write(text)
	})
}

func (l *executionLog) Error(messages ...any) {
	text := record(messages)
	l.write(func() { l.errors.write(text) })
}

// native takes what the function printed by other means than its context.
func (l *executionLog) native(text string) {
	l.write(func() {
		if !l.isNative {
			l.endLine()
			l.logs.write(nativeNotice)
		}
		l.isNative = true
		l.logs.write(text)
		l.isMidLine = !strings.HasSuffix(text, "\n")
	})
}

func (l *executionLog) flush() {
	l.write(func() {
		l.endLine()
		l.logs.flush()
		l.errors.flush()
	})
}

func (l *executionLog) close() {
	l.flush()
	l.write(func() { l.isOpen = false })
}

func (l *executionLog) write(act func()) {
	l.lock.Lock()
	defer l.lock.Unlock()
	if l.isOpen {
		act()
	}
}

func (l *executionLog) endLine() {
	if l.isMidLine {
		l.logs.write("\n")
		l.isMidLine = false
	}
}

// logID is the id asked for where it is a safe file name, else one of the runtime's own; empty where logging is off.
func logID(headers http.Header, isDevelopment bool) string {
	if logging := headers.Get("x-open-runtimes-logging"); logging != "" && logging != "enabled" {
		return ""
	}
	wanted := headers.Get("x-open-runtimes-log-id")
	switch {
	case safeID.MatchString(wanted):
		return wanted
	case isDevelopment && wanted == "":
		return "dev"
	}
	// Seconds (8 hexadecimal digits), fraction of a second (5), random (7).
	now := time.Now()
	return fmt.Sprintf("%08x%05x%07x", now.Unix(), now.Nanosecond()/1000, rand.Uint32N(1<<28))
}

func record(messages []any) string {
	texts := make([]string, len(messages))
	for i, message := range messages {
		texts[i] = toText(message)
	}
	text := strings.ToValidUTF8(strings.Join(texts, " "), "\uFFFD")
	if len(text) > recordLimit {
		end := recordLimit
		for !utf8.RuneStart(text[end]) {
			end--
		}
		text = text[:end] + truncated
	}
	return text + "\n"
}

// toText is a text as it is, what knows its own text by that, and lists, maps and structures as JSON.
func toText(value any) (text string) {
	defer func() {
		if recover() != nil {
			text = fmt.Sprintf("%T", value)
		}
	}()
	switch value := value.(type) {
	case string:
		return value
	case error, fmt.Stringer:
		return fmt.Sprint(value)
	}
	switch reflect.ValueOf(value).Kind() {
	case reflect.Array, reflect.Map, reflect.Pointer, reflect.Slice, reflect.Struct:
		if encoded, err := json.Marshal(value); err == nil {
			return string(encoded)
		}
	}
	return fmt.Sprint(value)
}
