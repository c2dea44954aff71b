// A web server that liveswap can swap under load; Go's standard library alone.
//
// It takes its socket from the manager, says READY=1, and on SIGTERM stops accepting, finishes what it has and exits 0.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	listener, err := inheritedSocket()
	if err != nil {
		log.Fatal(err)
	}
	// Caught before READY=1, so that a worker which was ready never dies of the request to drain.
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)

	var draining atomic.Bool
	var open sync.WaitGroup // connections
	server := &http.Server{
		Handler: announceClose(&draining, http.HandlerFunc(answer)),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				open.Add(1)
			case http.StateClosed, http.StateHijacked:
				open.Done()
			}
		},
	}
	stopped := make(chan error, 1)
	go func() { stopped <- server.Serve(listener) }()
	if err := notify("READY=1"); err != nil {
		log.Fatal(err)
	}

	select {
	case err := <-stopped:
		log.Fatal(err)
	case <-terminate:
	}
	draining.Store(true)
	// Closes this worker's descriptor alone: what waits in the queue is for the other workers. Every connection that
	// was accepted before is served.
	listener.Close()
	if err := <-stopped; !errors.Is(err, net.ErrClosed) {
		log.Fatal(err)
	}
	// Shutdown closes idle connections at once, and a client that is just sending on one would be reset. So those who
	// are at work get their `Connection: close` first.
	gone := make(chan struct{})
	go func() { open.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-time.After(linger()):
	}
	if err := server.Shutdown(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func answer(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintf(w, "generation %s slot %s pid %d\n",
		os.Getenv("LIVESWAP_GENERATION"), os.Getenv("LIVESWAP_SLOT"), os.Getpid())
}

// announceClose tells clients of a draining worker to go elsewhere with their next request.
func announceClose(draining *atomic.Bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if draining.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// inheritedSocket returns the socket that the manager passed: descriptor 3 (sd_listen_fds(3)).
func inheritedSocket() (net.Listener, error) {
	if pid := os.Getenv("LISTEN_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return nil, errors.New("LISTEN_PID names another process: does a wrapper lack its `exec`?")
	}
	if os.Getenv("LISTEN_FDS") != "1" {
		return nil, errors.New("one socket was expected; start this by `liveswap run service.toml`")
	}
	socket := os.NewFile(3, "LISTEN_FD_3")
	defer socket.Close() // FileListener makes a copy
	return net.FileListener(socket)
}

// notify tells the manager something (sd_notify(3)); without a manager it tells nobody.
func notify(message string) error {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return nil
	}
	// A leading @ means an abstract name to Go, too.
	socket, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer socket.Close()
	_, err = socket.Write([]byte(message))
	return err
}

// linger is how long idle connections stay open in a drain, for clients that are about to use them again.
func linger() time.Duration {
	if seconds, err := strconv.ParseFloat(os.Getenv("LINGER"), 64); err == nil {
		return time.Duration(seconds * float64(time.Second))
	}
	return time.Second
}
