// A member of a static partitioned consumer group of Orbit, used as its documentation shows for strict order: one message
// in flight for each member. It waits, publishes to out.TOKEN with an id, and acks when the copy is stored.
//
//	orbit_group URL MEMBER MEMBERS PARTITIONS WAIT
//
// MEMBER is a number below MEMBERS, and WAIT a duration such as 10ms. It reads IN, whose subjects begin with the
// partition.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/pcgroups"
)

const stream, group = "IN", "bench"

func main() {
	url, me := os.Args[1], "m"+os.Args[2]
	members, partitions := number(os.Args[3]), number(os.Args[4])
	wait, err := time.ParseDuration(os.Args[5])
	check(err)
	connection, err := nats.Connect(url, nats.MaxReconnects(-1))
	check(err)
	js, err := jetstream.New(connection)
	check(err)
	names := make([]string, members)
	for i := range names {
		names[i] = fmt.Sprintf("m%d", i)
	}
	ctx := context.Background()
	_, err = pcgroups.CreateStatic(ctx, js, stream, group, uint(partitions), []string{">"}, names, nil)
	check(err)
	handle := func(message jetstream.Msg) {
		time.Sleep(wait)
		metadata, err := message.Metadata()
		check(err)
		id := stream + "." + strconv.FormatUint(metadata.Sequence.Stream, 10)
		subject := "out." + strings.TrimPrefix(message.Subject(), "in.")
		if _, err = js.Publish(ctx, subject, message.Data(), jetstream.WithMsgID(id)); err != nil {
			log.Printf("not stored: %v", err)
			return
		}
		if err = message.Ack(); err != nil {
			log.Printf("not acked: %v", err)
		}
	}
	config := jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 1}
	_, err = pcgroups.StaticConsume(ctx, js, stream, group, me, handle, config)
	check(err)
	select {}
}

func number(text string) int {
	found, err := strconv.Atoi(text)
	check(err)
	return found
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
