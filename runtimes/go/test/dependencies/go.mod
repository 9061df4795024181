module openruntimes/handler

go 1.24

require (
	example.org/greeting v1.0.0
	github.com/open-runtimes/types-for-go/v4 v4.0.8
)
