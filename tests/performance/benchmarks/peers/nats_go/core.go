package main

import (
	"bytes"
	"log"
	"strings"

	"github.com/nats-io/nats.go"
)

// forward publishes in.TOKEN as out.TOKEN, in upper case if there is a handler.
func forward(source, destination *nats.Conn, handled bool) {
	_, err := source.Subscribe("in.*", func(message *nats.Msg) {
		payload := message.Data
		if handled {
			payload = bytes.ToUpper(payload)
		}
		if err := destination.Publish("out."+strings.TrimPrefix(message.Subject, "in."), payload); err != nil {
			log.Printf("not sent: %v", err)
		}
	})
	if err != nil {
		log.Fatalf("not subscribed: %v", err)
	}
	select {}
}
