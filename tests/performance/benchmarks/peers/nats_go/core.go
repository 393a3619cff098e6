package main

import (
	"bytes"
	"fmt"
	"log"
	"strings"

	"github.com/nats-io/nats.go"
)

// forward publishes in.TOKEN as out.TOKEN, in upper case if there is a handler. With several sources it has a
// subscription to in.NUMBER.* for each.
func forward(source, destination *nats.Conn, handled bool, sources int) {
	subjects := []string{"in.*"}
	if sources > 0 {
		subjects = nil
		for number := range sources {
			subjects = append(subjects, fmt.Sprintf("in.%04d.*", number))
		}
	}
	for _, subject := range subjects {
		_, err := source.Subscribe(subject, func(message *nats.Msg) {
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
	}
	select {}
}
