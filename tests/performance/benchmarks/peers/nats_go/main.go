// A loop on nats.go, used as its documentation shows: a callback that publishes, or a pull consumer, PublishMsgAsync and
// ack.
//
//	nats_go [-to URL] [-sources N] URL core|handler|stream
//
// It reads from URL, and publishes to the server of -to if that is another one. With -sources it has that many
// subscriptions, or reads that many streams.
package main

import (
	"flag"
	"log"

	"github.com/nats-io/nats.go"
)

func main() {
	to := flag.String("to", "", "the URL of the server that it publishes to")
	sources := flag.Int("sources", 0, "subscriptions to in.NUMBER.*, or streams IN-NUMBER; 0 is in.* or IN alone")
	flag.Parse()
	url, kind := flag.Arg(0), flag.Arg(1)

	source := connect(url)
	destination := source
	if *to != "" {
		destination = connect(*to)
	}
	if kind == "stream" {
		copyStreams(source, destination, *sources)
	} else {
		forward(source, destination, kind == "handler", *sources)
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
