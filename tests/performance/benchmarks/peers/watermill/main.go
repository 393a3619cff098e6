// Watermill on NATS, used as its documentation shows: a router whose handler publishes.
//
//	watermill [-to URL] URL core|handler|stream
//
// It reads from URL, and publishes to the server of -to if that is another one. From a stream it reads by a push consumer
// of its own, and acks when the publisher has its PubAck. One message is under way at a time.
package main

import (
	"bytes"
	"context"
	"flag"
	"log"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	client "github.com/nats-io/nats.go"
)

// subjectKey is the metadata that carries the subject of a message: to Watermill, all that came belongs to one topic.
const subjectKey = "subject"

// withSubject notes of a message what its subject was.
type withSubject struct{ nats.NATSMarshaler }

func (w *withSubject) Unmarshal(received *client.Msg) (*message.Message, error) {
	unmarshaled, err := w.NATSMarshaler.Unmarshal(received)
	if err == nil {
		unmarshaled.Metadata.Set(subjectKey, received.Subject)
	}
	return unmarshaled, err
}

func main() {
	to := flag.String("to", "", "the URL of the server that it publishes to")
	flag.Parse()
	url, kind := flag.Arg(0), flag.Arg(1)
	if *to == "" {
		*to = url
	}
	logger := watermill.NewStdLogger(false, false)
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		log.Fatal(err)
	}
	publisher := publisherTo(*to, kind, logger)
	router.AddConsumerHandler("bench", "in.*", subscriberTo(url, kind, logger), func(received *message.Message) error {
		subject := received.Metadata.Get(subjectKey)
		payload := received.Payload
		if kind == "handler" {
			payload = bytes.ToUpper(payload)
		}
		return publisher.Publish("out."+strings.TrimPrefix(subject, "in."), message.NewMessage(received.UUID, payload))
	})
	if err := router.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func subscriberTo(url, kind string, logger watermill.LoggerAdapter) message.Subscriber {
	subscriber, err := nats.NewSubscriber(nats.SubscriberConfig{
		URL:            url,
		CloseTimeout:   30 * time.Second,
		AckWaitTimeout: 30 * time.Second,
		NatsOptions:    options(),
		Unmarshaler:    &withSubject{},
		JetStream:      jetStream(kind),
	}, logger)
	if err != nil {
		log.Fatal(err)
	}
	return subscriber
}

func publisherTo(url, kind string, logger watermill.LoggerAdapter) message.Publisher {
	publisher, err := nats.NewPublisher(nats.PublisherConfig{
		URL:         url,
		NatsOptions: options(),
		Marshaler:   &nats.NATSMarshaler{},
		JetStream:   jetStream(kind),
	}, logger)
	if err != nil {
		log.Fatal(err)
	}
	return publisher
}

func options() []client.Option {
	return []client.Option{
		client.RetryOnFailedConnect(true),
		client.Timeout(30 * time.Second),
		client.ReconnectWait(time.Second),
		client.MaxReconnects(-1),
	}
}

func jetStream(kind string) nats.JetStreamConfig {
	return nats.JetStreamConfig{
		Disabled:         kind != "stream",
		SubscribeOptions: []client.SubOpt{client.DeliverAll(), client.AckExplicit()},
		DurablePrefix:    "watermill",
	}
}
