// Package openruntimes is what functions are written against. It stands in for the published package of this path: its
// names and signatures are the same, the log is the server's.
package openruntimes

// Logger takes what a function logs; the server has one for each execution.
type Logger interface {
	Log(messages ...any)
	Error(messages ...any)
}

// Context is what a function is called with.
type Context struct {
	logger Logger

	Req ContextRequest
	Res ContextResponse
}

// NewContext makes the context of one execution.
func NewContext(logger Logger) Context {
	return Context{logger: logger}
}

// Log writes one record, the texts of the messages joined by spaces.
func (c *Context) Log(messages ...any) {
	c.logger.Log(messages...)
}

// Error writes one record to the error log.
func (c *Context) Error(messages ...any) {
	c.logger.Error(messages...)
}
