"""The raw clients of the tests, with TLS and with credentials."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.certificates import Certificates
from tests.support.credentials import Nkey, create_operator, nkey_config, read_credentials, user_nkey
from tests.support.raw_jetstream import JetStream, JetStreamError
from tests.support.raw_nats import NoResponders, RawNatsClosed, RawNatsError, connect, parse_headers
from tests.support.servers import NatsServer, nats_server


class TestRawClient:
    async def test_publish_and_subscribe(self, core_server: NatsServer) -> None:
        async with connect(core_server.url) as client, connect(core_server.url) as other:
            subscription = await client.subscribe("orders.*")
            await other.publish("orders.1", b"one", reply="back")
            await other.publish("orders.2", b"\r\nMSG \xff\r\n")
            await other.publish("else", b"not for us")
            await other.ping()
            await client.ping()
            assert [(m.subject, m.reply, m.payload) for m in subscription.waiting()] == [
                ("orders.1", "back", b"one"),
                ("orders.2", None, b"\r\nMSG \xff\r\n"),
            ]
            await subscription.unsubscribe()
            await client.publish("orders.3")
            await client.ping()
            assert subscription.waiting() == []

    async def test_headers_keep_order_and_repetition(self, core_server: NatsServer) -> None:
        async with connect(core_server.url) as client:
            subscription = await client.subscribe("h")
            pairs = (("A", "1"), ("B", "zwei, größer"), ("A", "3"))
            await client.publish("h", b"x", headers=pairs)
            await client.publish("h", b"", headers=b"NATS/1.0\r\n\r\n", reply="r")
            first, second = await subscription.next(), await subscription.next()
            assert (first.headers, first.payload) == (pairs, b"x")
            assert (second.headers, second.payload, second.reply) == ((), b"", "r")

    async def test_a_queue_group_shares_messages(self, core_server: NatsServer) -> None:
        async with connect(core_server.url) as client:
            first, second = await client.subscribe("q", "group"), await client.subscribe("q", "group")
            await client.publish_many(("q", b"%d" % number) for number in range(200))
            await client.ping()
            taken, rest = first.waiting(), second.waiting()
            assert taken
            assert rest
            assert sorted(int(m.payload) for m in taken + rest) == list(range(200))

    async def test_request(self, core_server: NatsServer) -> None:
        async with connect(core_server.url) as client, connect(core_server.url) as service:
            with pytest.raises(NoResponders, match="double"):
                await client.request("double", b"ab")
            asked = await service.subscribe("double")

            async def answer() -> None:
                message = await asked.next()
                assert message.reply is not None
                await service.publish(message.reply, message.payload * 2)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                assert (await client.request("double", b"ab")).payload == b"abab"
            with pytest.raises(trio.TooSlowError):
                await client.request("double", within=0.05)

    async def test_errors_of_the_server_are_kept(self, core_server: NatsServer) -> None:
        async with connect(core_server.url) as client:
            await client.send(b"NONSENSE\r\n")
            await client.closed()
            assert client.errors == ["Unknown Protocol Operation"]
            with pytest.raises(RawNatsClosed, match="Unknown Protocol Operation"):
                await client.ping()

    async def test_iteration_ends_with_the_connection(self, core_server: NatsServer) -> None:
        async with connect(core_server.url) as client:
            subscription = await client.subscribe("a")
            await client.publish("a", b"last")
            await client.ping()
            await core_server.kill()
            assert [message.payload async for message in subscription] == [b"last"]

    def test_parse_headers(self) -> None:
        assert parse_headers(b"NATS/1.0 503\r\n\r\n") == ()
        assert parse_headers(b"NATS/1.0\r\nA: b:c\r\nE:\r\n\r\n") == (("A", "b:c"), ("E", ""))


class TestRawJetStream:
    async def test_two_thousand_messages_are_stored_and_read_back(self, server: NatsServer) -> None:
        async with connect(server.url) as client:
            js = JetStream(client)
            await js.create_stream("S", ["s.*"])
            sent = [(f"s.{number}", b"%d" % number, {"Nats-Msg-Id": str(number)}) for number in range(2_000)]
            acks = await js.publish_many(sent)
            assert [ack["seq"] for ack in acks] == list(range(1, 2_001))
            assert (await js.publish(*sent[0]))["duplicate"] is True
            stored = await js.stream_messages("S")
            assert [(m.subject, m.payload, dict(m.headers)) for m in stored] == sent
            assert [m.sequence for m in stored] == list(range(1, 2_001))
            assert (await js.stream_info("S"))["state"]["consumer_count"] == 0
            await js.delete_stream("S")
            with pytest.raises(JetStreamError, match="stream not found") as caught:
                await js.stream_info("S")
            assert (caught.value.code, caught.value.err_code) == (404, 10059)

    async def test_an_empty_stream(self, server: NatsServer) -> None:
        async with connect(server.url) as client:
            js = JetStream(client)
            await js.create_stream("S", ["s"])
            assert await js.stream_messages("S") == []
            await js.create_stream("W", ["w"], retention="workqueue")
            assert await js.stream_messages("W") == []

    async def test_a_work_queue_is_read_without_removing_messages(self, server: NatsServer) -> None:
        async with connect(server.url) as client:
            js = JetStream(client)
            await js.create_stream("W", ["w"], retention="workqueue")
            await js.create_consumer("W", "worker")
            await js.publish_many([("w", b"%d" % number, {"N": str(number)}) for number in range(10)])
            await js.api("STREAM.MSG.DELETE.W", {"seq": 3})
            stored = await js.stream_messages("W")
            assert [(m.sequence, m.payload, m.header("N")) for m in stored] == [
                (number + 1, b"%d" % number, str(number)) for number in range(10) if number != 2
            ]
            assert (await js.consumer_info("W", "worker"))["num_pending"] == 9

    @pytest.mark.nightly
    async def test_fifty_thousand_are_read_in_seconds(self, server: NatsServer) -> None:
        async with connect(server.url) as client:
            js = JetStream(client)
            await js.create_stream("S", ["s"])
            await js.publish_many([("s", b"%d" % number, None) for number in range(50_000)])
            with trio.fail_after(10):
                stored = await js.stream_messages("S")
            assert [int(m.payload) for m in stored] == list(range(50_000))


class TestTls:
    @pytest.mark.parametrize("handshake_first", [False, True])
    async def test_a_trusted_certificate(
        self, tmp_path: Path, certificates: Certificates, handshake_first: bool
    ) -> None:
        config = certificates.server_config(handshake_first=handshake_first)
        async with (
            nats_server(tmp_path, config=config, greets=not handshake_first) as server,
            connect(server.url, tls=certificates.client_context(), handshake_first=handshake_first) as client,
        ):
            await client.ping()

    async def test_the_client_has_to_present_a_certificate(self, tmp_path: Path, certificates: Certificates) -> None:
        async with nats_server(tmp_path, config=certificates.server_config(verify=True)) as server:
            async with connect(server.url, tls=certificates.client_context(with_certificate=True)) as client:
                await client.ping()
            with pytest.raises(RawNatsError):
                async with connect(server.url, tls=certificates.client_context()):
                    pytest.fail("connected without a certificate")

    @pytest.mark.parametrize(
        ("reason", "words"),
        [
            ("other_ca", "unable to get local issuer|self.signed"),
            ("expired_server", "expired"),
            ("wrong_host_server", "IP address mismatch"),
        ],
    )
    async def test_an_untrusted_certificate(
        self, tmp_path: Path, certificates: Certificates, reason: str, words: str
    ) -> None:
        server_pair = None if reason == "other_ca" else getattr(certificates, reason)
        context = certificates.client_context(ca=certificates.other_ca if reason == "other_ca" else None)
        async with nats_server(tmp_path, config=certificates.server_config(server=server_pair)) as server:
            with pytest.raises(trio.BrokenResourceError) as caught:
                async with connect(server.url, tls=context):
                    pytest.fail("connected to a server that must not be trusted")
            assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
            assert re.search(words, str(caught.value.__cause__))


class TestAuthorization:
    async def test_user_and_password_and_token(self, tmp_path: Path) -> None:
        config = 'authorization { users: [{ user: "ann", password: "secret" }] }\n'
        async with nats_server(tmp_path, config=config) as server:
            async with connect(server.url, user="ann", password="secret") as client:
                await client.ping()
            with pytest.raises(RawNatsError, match="Authorization Violation"):
                async with connect(server.url, user="ann", password="wrong"):
                    pytest.fail("connected with a wrong password")
            await server.reload('authorization { token: "t" }\n')
            async with connect(server.url, token="t") as client:
                await client.ping()

    async def test_nkey(self, tmp_path: Path) -> None:
        user, stranger = user_nkey(), user_nkey()
        async with nats_server(tmp_path, config=nkey_config(user)) as server:
            async with connect(server.url, nkey=user.public, sign=user.sign) as client:
                await client.ping()
            with pytest.raises(RawNatsError, match="Authorization Violation"):
                async with connect(server.url, nkey=user.public, sign=stranger.sign):
                    pytest.fail("connected with another's signature")

    async def test_credentials_of_an_operator(self, tmp_path: Path) -> None:
        operator = create_operator()
        async with nats_server(tmp_path, config=operator.config) as server:
            jwt, seed = read_credentials(operator.credentials(tmp_path / "user.creds"))
            async with connect(server.url, jwt=jwt, sign=Nkey(seed).sign) as client:
                js = JetStream(client)
                await js.create_stream("S", ["s"])
                assert (await js.publish("s"))["seq"] == 1

            jwt, seed = read_credentials(operator.credentials(tmp_path / "old.creds", expires_in=-60))
            with pytest.raises(RawNatsError, match=r"Expired|Authorization Violation"):
                async with connect(server.url, jwt=jwt, sign=Nkey(seed).sign):
                    pytest.fail("connected with credentials that have expired")

            limited = {"pub": {"allow": ["mine.>"]}, "sub": {"allow": ["mine.>", "_INBOX.>"]}}
            path = operator.credentials(tmp_path / "limited.creds", permissions=limited)
            jwt, seed = read_credentials(path)
            async with connect(server.url, jwt=jwt, sign=Nkey(seed).sign) as client:
                await client.publish("other", b"")
                await client.ping()
                assert client.errors == ['Permissions Violation for Publish to "other"']

    async def test_credentials_of_another_operator(self, tmp_path: Path) -> None:
        jwt, seed = read_credentials(create_operator().credentials(tmp_path / "user.creds"))
        async with nats_server(tmp_path, config=create_operator().config) as server:
            with pytest.raises(RawNatsError, match="Authorization Violation"):
                async with connect(server.url, jwt=jwt, sign=Nkey(seed).sign):
                    pytest.fail("connected with another operator's credentials")
