package main

import (
	"context"
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

// copyStream copies IN, durable bench, to the stream that keeps out.*. A message is acked when its copy is stored, and
// returned when that failed.
func copyStream(source, destination *nats.Conn) {
	publisher, err := jetstream.New(destination)
	if err != nil {
		log.Fatal(err)
	}
	messages := consume(source)
	copies := make(chan published, inFlight-1)
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
		id := strconv.FormatUint(metadata.Sequence.Stream, 10)
		future, err := publisher.PublishMsgAsync(copied, jetstream.WithMsgID(id))
		if err != nil {
			giveBack(message, err)
			continue
		}
		copies <- published{message, future}
	}
}

// consume returns the messages of the durable, requested ahead.
func consume(source *nats.Conn) jetstream.MessagesContext {
	reader, err := jetstream.New(source)
	if err != nil {
		log.Fatal(err)
	}
	consumer, err := reader.Consumer(context.Background(), "IN", "bench")
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
