// A loop on nats.go, used as its documentation shows: a callback that publishes, or a pull consumer, PublishMsgAsync and
// ack.
//
//	nats_go [-to URL] URL core|handler|stream
//
// It reads from URL, and publishes to the server of -to if that is another one.
package main

import (
	"flag"
	"log"

	"github.com/nats-io/nats.go"
)

func main() {
	to := flag.String("to", "", "the URL of the server that it publishes to")
	flag.Parse()
	url, kind := flag.Arg(0), flag.Arg(1)

	source := connect(url)
	destination := source
	if *to != "" {
		destination = connect(*to)
	}
	if kind == "stream" {
		copyStream(source, destination)
	} else {
		forward(source, destination, kind == "handler")
	}
}

// connect returns a connection that is never given up. All else is as it is by default.
func connect(url string) *nats.Conn {
	connection, err := nats.Connect(url, nats.MaxReconnects(-1))
	if err != nil {
		log.Fatalf("not connected to %s: %v", url, err)
	}
	return connection
}
