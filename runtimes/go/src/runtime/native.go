package runtime

import (
	"os"
	"runtime/debug"
	"sync"
	"syscall"
)

// native is what the process prints, by whatever means: descriptors 1 and 2 are a pipe that ends here. Go does not tell which
// goroutine has printed, so that it is the execution's where only one is under way, and the process's own otherwise: nobody
// finds the output of others in a log.
type native struct {
	lock   sync.Mutex
	reader syscall.RawConn
	output *os.File
	active map[*executionLog]bool
}

// captureOutput redirects both descriptors, for good.
func captureOutput() (*native, error) {
	output, err := syscall.Dup(1)
	if err != nil {
		return nil, err
	}
	syscall.CloseOnExec(output)
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC); err != nil {
		return nil, err
	}
	// Only the end that is read here: who prints to a full pipe waits.
	if err := syscall.SetNonblock(ends[0], true); err != nil {
		return nil, err
	}
	reader, err := os.NewFile(uintptr(ends[0]), "output").SyscallConn()
	if err != nil {
		return nil, err
	}
	n := &native{reader: reader, output: os.NewFile(uintptr(output), "stdout"), active: map[*executionLog]bool{}}
	// What the process says when it dies nobody would read from the pipe any more.
	if err := debug.SetCrashOutput(n.output, debug.CrashOptions{}); err != nil {
		return nil, err
	}
	for _, descriptor := range []int{1, 2} {
		if err := syscall.Dup3(ends[1], descriptor, 0); err != nil {
			return nil, err
		}
	}
	go n.follow()
	return n, nil
}

func (n *native) begin(logger *executionLog) {
	n.change(func() { n.active[logger] = true })
}

// end returns when what the execution has printed is in its log.
func (n *native) end(logger *executionLog) {
	n.change(func() { delete(n.active, logger) })
}

func (n *native) change(act func()) {
	_ = n.reader.Control(func(descriptor uintptr) {
		n.lock.Lock()
		defer n.lock.Unlock()
		n.deliver(descriptor)
		act()
	})
}

// follow delivers output as it comes.
func (n *native) follow() {
	_ = n.reader.Read(func(descriptor uintptr) bool {
		n.lock.Lock()
		defer n.lock.Unlock()
		n.deliver(descriptor)
		return false
	})
}

// deliver takes what is in the pipe, and no more: it may never end.
func (n *native) deliver(descriptor uintptr) {
	buffer := make([]byte, 64<<10)
	read, _ := syscall.Read(int(descriptor), buffer)
	if read <= 0 {
		return
	}
	if len(n.active) == 1 {
		for logger := range n.active {
			logger.native(string(buffer[:read]))
		}
		return
	}
	_, _ = n.output.Write(buffer[:read])
}
