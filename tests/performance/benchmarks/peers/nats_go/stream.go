package main

import (
	"context"
	"fmt"
	"log"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// inFlight is how many messages wait for their PubAck at most, as many as nats.go allows by default.
const inFlight = 4000

// published is a message of the source, and what becomes of its copy.
type published struct {
	message jetstream.Msg
	stored  jetstream.PubAckFuture
}

// copyStreams copies IN, or IN-0000 and so on, to the stream that keeps out.>. They share what may be in flight.
func copyStreams(source, destination *nats.Conn, sources int) {
	publisher, err := jetstream.New(destination)
	if err != nil {
		log.Fatal(err)
	}
	if sources == 0 {
		copyStream(source, publisher, "IN", inFlight)
	}
	for number := range sources {
		go copyStream(source, publisher, fmt.Sprintf("IN-%04d", number), inFlight/sources)
	}
	select {}
}

// copyStream copies a stream, durable bench. A message is acked when its copy is stored, and returned when that failed.
func copyStream(source *nats.Conn, publisher jetstream.JetStream, stream string, most int) {
	messages := consume(source, stream)
	copies := make(chan published, most-1)
	go settle(copies)
	for {
		message, err := messages.Next()
		if err != nil {
			log.Printf("not received: %v", err)
			continue
		}
		metadata, err := message.Metadata()
		if err != nil {
			log.Fatal(err)
		}
		copied := &nats.Msg{Subject: "out." + strings.TrimPrefix(message.Subject(), "in."), Data: message.Data()}
		id := stream + "." + strconv.FormatUint(metadata.Sequence.Stream, 10)
		future, err := publisher.PublishMsgAsync(copied, jetstream.WithMsgID(id))
		if err != nil {
			giveBack(message, err)
			continue
		}
		copies <- published{message, future}
	}
}

// consume returns the messages of the durable, requested ahead.
func consume(source *nats.Conn, stream string) jetstream.MessagesContext {
	reader, err := jetstream.New(source)
	if err != nil {
		log.Fatal(err)
	}
	consumer, err := reader.Consumer(context.Background(), stream, "bench")
	if err != nil {
		log.Fatalf("no consumer: %v", err)
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(1000))
	if err != nil {
		log.Fatalf("no consumer: %v", err)
	}
	return messages
}

// settle acks what is stored, in the order in which it was published.
func settle(copies <-chan published) {
	for one := range copies {
		select {
		case <-one.stored.Ok():
			if err := one.message.Ack(); err != nil {
				log.Printf("not acked: %v", err)
			}
		case err := <-one.stored.Err():
			giveBack(one.message, err)
		}
	}
}

// giveBack has a message delivered again.
func giveBack(message jetstream.Msg, reason error) {
	log.Printf("not sent: %v", reason)
	if err := message.Nak(); err != nil {
		log.Printf("not returned: %v", err)
	}
}
