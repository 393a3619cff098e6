"""Several workers under one supervisor, with a real server: how messages are shared, and what is counted."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Settings
from tests.integration.pages import get
from tests.integration.workers import CONFIG, Workers, assert_balanced, publish, settled, workers
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer


@pytest.fixture
async def streams(server: NatsServer) -> AsyncIterator[JetStream]:
    async with connect(server.url) as client:
        stored = JetStream(client)
        await stored.create_stream("ORDERS", ["orders.*"])
        await stored.create_stream("STORED", ["stored.*"])
        yield stored


async def test_two_workers_share_a_durable_and_a_queue_group_and_each_message_arrives_once(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    async with connect(server.url) as client, workers(server, tmp_path) as one:
        out = await client.subscribe("out.*")
        await client.ping()
        for first in range(0, 2000, 100):
            await publish(client, "orders", first, 100)
            await publish(client, "in", first, 100)
        status = await one.until(
            lambda status: all(settled(status, name)["routed"] >= 2000 for name in ("stored", "passed"))
        )
        assert_balanced(status)
        assert [status["routes"][name]["ledger"]["received"] for name in ("stored", "passed")] == [2000, 2000]
        assert status["ledger"]["main"]["settled"]["acked"] == 2000
        stored = [message.payload for message in await streams.stream_messages("STORED")]
        assert sorted(map(int, stored)) == list(range(2000))
        await client.ping()
        assert sorted(int(message.payload) for message in out.waiting()) == list(range(2000))
        assert await one.metric("router_messages_routed_total", route="stored") == 2000
        assert await one.metric("router_route_duration_seconds_count", route="passed") == 2000
        assert await one.metric("router_nats_connection_established_total") == 2
        assert await one.metric("router_ledger_unbalanced") == 0
        assert await one.metric("router_info") == 1
        assert {name: worker["state"] for name, worker in status["workers"].items()} == {"1": "running", "2": "running"}
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0
        stopped = one.run.logged("ROUTER_STOPPED")
        assert [line.get("worker") for line in stopped[:2]] in ([1, 2], [2, 1])
        assert (stopped[2].get("worker"), stopped[2]["unsettled"]) == (None, 0)
        assert stopped[2]["ledger"]["main"]["accepted"] == 4000
        by_worker = [line["ledger"]["main"]["accepted"] for line in stopped[:2]]
        assert sum(by_worker) == 4000
        assert min(by_worker) > 0, "both have taken part"
        for line in one.run.errors.splitlines():
            assert "error_code" in json.loads(line), "lines are whole"


async def test_each_worker_is_an_instance_of_the_service_and_their_numbers_add_up(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    found: list[dict[str, Any]] = []
    async with connect(server.url) as client, workers(server, tmp_path) as one:
        await publish(client, "in", 0, 200)
        status = await one.until(lambda status: settled(status, "passed")["routed"] == 200)
        answers = await client.subscribe("_INBOX.asks")

        async def both_answer() -> bool:
            await client.publish("$SRV.STATS.router-trio", b"", None, "_INBOX.asks")
            with trio.move_on_after(1):
                found[:] = [json.loads((await answers.next()).payload) for _ in range(2)]
                return True
            return False

        await eventually(both_answer)
        assert {process["metadata"]["worker"] for process in found} == {"1", "2"}
        assert {int(process["metadata"]["pid"]) for process in found} == {*(await one.pids()).values()}
        routes = [route for process in found for route in process["endpoints"]]
        for name, shown in status["routes"].items():
            assert sum(route["num_requests"] for route in routes if route["name"] == name) == shown["received"]


async def test_every_message_of_a_killed_worker_is_accounted_for(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    async with connect(server.url) as client, workers(server, tmp_path) as one:
        out = await client.subscribe("out.*")
        await client.ping()
        sent, killed, descriptors = 0, list[int](), one.descriptors()
        for kill_at in (2000, 5000):
            while sent < kill_at:
                await publish(client, "orders", sent, 100)
                await publish(client, "in", sent, 100)
                sent += 100
            pid = (await one.pids())["1"]
            await publish(client, "orders", sent, 1000)
            await publish(client, "in", sent, 1000)
            sent += 1000
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            await one.until(lambda status: status["workers"]["1"]["pid"] not in (None, *killed))
            await one.ready()
        status = await one.until(lambda status: settled(status, "stored")["routed"] >= sent)
        # Messages redelivered to the others are settled, too.
        status = await one.until(
            lambda status: all(route["ledger"]["in_hand"] == 0 for route in status["routes"].values())
        )
        assert_balanced(status)
        assert status["workers"]["1"]["restarts"] == 2
        assert one.descriptors() <= descriptors
        lost = one.run.logged("ROUTER_WORKER_LOST")
        assert [(line["level"], line["worker"], line["pid"]) for line in lost] == [("ERROR", 1, pid) for pid in killed]
        assert all(line["reason"] == "was killed by SIGKILL" for line in lost)
        assert all(0 < line["delay_ms"] <= 400 for line in lost)
        assert [line["restarts"] for line in one.run.logged("ROUTER_WORKER_STARTED") if line["worker"] == 1] == [
            0,
            1,
            2,
        ]
        # What the log reports as left is what the sums report.
        fates = status["ledger"]["main"]["settled"]
        assert fates["dropped"] == sum(line["dropped"] for line in lost)
        assert settled(status, "stored")["returned"] >= sum(line["returned"] for line in lost)
        assert settled(status, "passed")["lost"] == sum(line["lost"] for line in lost)
        assert (
            await one.metric("router_nats_pending_operations_dropped_total", reason="worker_lost") == fates["dropped"]
        )
        # The stream has each message once, and acked all of them.
        stored = [message.payload for message in await streams.stream_messages("STORED")]
        assert sorted(map(int, stored)) == list(range(sent))
        info = await streams.consumer_info("ORDERS", "router")
        assert (info["ack_floor"]["stream_seq"], info["num_ack_pending"]) == (sent, 0)
        # Routed core messages have arrived, and none arrived that was neither routed nor counted as lost.
        await client.ping()
        came = len(out.waiting())
        passed = settled(status, "passed")
        assert passed["routed"] <= came <= passed["routed"] + passed["lost"]
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0


async def test_a_reload_reaches_all_workers_or_none(server: NatsServer, streams: JetStream, tmp_path: Path) -> None:
    async with connect(server.url) as client, workers(server, tmp_path) as one:
        path = tmp_path / "router.toml"
        good = path.read_text()
        path.write_text(good.replace("out.{{", "OUT.{{").replace('queue = "routers"', 'queue = ""'))
        one.run.send(signal.SIGHUP)
        refused = await one.run.has_logged("ROUTER_RELOAD_REFUSED")
        assert "worker" not in refused
        path.write_text(good.replace(', queue = "routers"', ""))
        one.run.send(signal.SIGHUP)
        await eventually(lambda: len(one.run.logged("ROUTER_RELOAD_REFUSED")) == 2)
        assert "queue" in one.run.logged("ROUTER_RELOAD_REFUSED")[1]["problems"][0]
        config = (await one.status())["config"]
        assert config["last_error"].splitlines() == one.run.logged("ROUTER_RELOAD_REFUSED")[1]["problems"]
        assert await one.metric("router_config_last_reload_successful") == 0
        path.write_text(good.replace("out.{{", "OUT.{{"))
        one.run.send(signal.SIGHUP)
        for number in (1, 2):
            line = await one.run.has_logged("ROUTER_RELOADED", worker=number)
            assert line["changed"] == ["route passed"]
        status = await one.until(lambda status: status["config"]["last_error"] is None)
        assert status["config"]["files"] == [str(path)]
        assert status["config"]["hash"] == Settings.load(path, environ={}).content_hash != config["hash"]
        assert {worker["config_hash"] for worker in status["workers"].values()} == {status["config"]["hash"]}
        assert await one.metric("router_config_last_reload_successful") == 1
        assert await hashes(one) == [status["config"]["hash"]]
        out = await client.subscribe("OUT.*")
        await client.ping()
        await publish(client, "in", 0, 200)
        await one.until(lambda status: settled(status, "passed")["routed"] >= 200)
        await client.ping()
        assert len(out.waiting()) == 200
        # A worker that is started later has the new settings.
        os.kill((await one.pids())["2"], signal.SIGKILL)
        await one.run.has_logged("ROUTER_WORKER_STARTED", worker=2, restarts=1)
        await one.ready()
        await publish(client, "in", 200, 200)
        await one.until(lambda status: settled(status, "passed")["routed"] >= 400)
        await client.ping()
        assert len(out.waiting()) == 200
        assert not one.run.logged("ROUTER_RESTART_NEEDED")
        assert await hashes(one) == [status["config"]["hash"]]
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0


async def hashes(one: Workers) -> list[str]:
    """Return the configurations that are in force, as a scrape shows them."""
    _, _, body = await get(one.address, "/metrics")
    return re.findall(r'router_config_info{hash="(\w+)"} 1.0', body.decode())


async def test_a_worker_that_misses_a_reload_is_shown_with_its_old_configuration(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    async with workers(server, tmp_path) as one:
        before = (await one.status())["config"]["hash"]
        pid = (await one.pids())["2"]
        os.kill(pid, signal.SIGSTOP)
        try:
            path = tmp_path / "router.toml"
            path.write_text(path.read_text().replace("out.{{", "OUT.{{"))
            one.run.send(signal.SIGHUP)
            status = await one.until(lambda status: status["config"]["hash"] != before)
            after = status["config"]["hash"]
            assert {number: worker["config_hash"] for number, worker in status["workers"].items()} == {
                "1": after,
                "2": before,
            }
            assert await hashes(one) == [after, before]
        finally:
            os.kill(pid, signal.SIGCONT)
        await one.until(lambda status: status["workers"]["2"]["config_hash"] == after)
        assert await hashes(one) == [after]
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0


async def test_a_worker_that_hangs_delays_no_page_and_is_not_ready(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    async with connect(server.url) as client, workers(server, tmp_path) as one:
        await publish(client, "orders", 0, 100)
        await one.until(lambda status: settled(status, "stored")["routed"] == 100)
        pid = (await one.pids())["2"]
        os.kill(pid, signal.SIGSTOP)
        try:
            with trio.fail_after(20):
                while (answer := await get(one.address, "/readyz"))[0] == 200:
                    await trio.sleep(0.05)
            assert json.loads(answer[2])["reasons"] == [{"worker": 2, "reason": "silent"}]
            with trio.fail_after(5):
                status = await one.status()
                assert await one.metric("router_messages_received_total", route="stored") == 100
            assert status["workers"]["2"]["state"] == "silent"
            assert_balanced(status)
        finally:
            os.kill(pid, signal.SIGCONT)
        await one.ready()
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0


async def test_a_configuration_that_one_worker_refuses_changes_none(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere.py").write_text(
        'import sys\nif sys.argv[1:3] == ["_worker", "2"]:\n    raise ImportError("not in this one")\n'
        "def handle(message):\n    return None\n"
    )
    async with connect(server.url) as client, workers(server, tmp_path) as one:
        out = await client.subscribe("out.*")
        await client.ping()
        before = (await one.status())["config"]
        path = tmp_path / "router.toml"
        path.write_text(path.read_text().replace('name = "passed"', 'name = "passed"\nhandler = "elsewhere:handle"'))
        one.run.send(signal.SIGHUP)
        await eventually(lambda: any("worker" not in line for line in one.run.logged("ROUTER_RELOAD_REFUSED")))
        (refused,) = [line for line in one.run.logged("ROUTER_RELOAD_REFUSED") if "worker" not in line]
        assert "not in this one" in refused["problems"][0]
        assert [line["worker"] for line in one.run.logged("ROUTER_RELOADED")] == [1, 1], "there and back"
        status = await one.status()
        assert "not in this one" in status["config"]["last_error"]
        assert (status["config"]["hash"], status["config"]["loaded_at"]) == (before["hash"], before["loaded_at"])
        assert status["config"]["reloads"] == {"accepted": 0, "refused": 1}
        assert await hashes(one) == [before["hash"]]
        assert await one.metric("router_config_last_reload_successful") == 0
        await publish(client, "in", 0, 200)
        await one.until(lambda status: settled(status, "passed")["routed"] >= 200)
        await client.ping()
        assert len(out.waiting()) == 200
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0


async def test_the_supervisor_reports_unreadiness_for_all_workers(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    async with workers(server, tmp_path) as one:
        line = await one.run.has_logged("ROUTER_READY")
        assert (line["level"], line.get("worker")) == ("INFO", None)
        assert one.run.logged("ROUTER_NOT_READY") == [], "an ordinary start is no trouble"
        assert await one.metric("router_ready") == 1
        assert await one.metric("router_route_ready", route="passed") == 1
        server.stop()
        line = await one.run.has_logged("ROUTER_NOT_READY")
        assert (line["level"], line.get("worker")) == ("WARN", None)
        assert await one.metric("router_ready") == 0
        # A silent consumer may be noticed before the silent server; a line of its own reports that.
        found: list[str] = []
        with trio.fail_after(20):
            while not any("connection main: " in reason for reason in found):
                await trio.sleep(0.05)
                found = one.run.logged("ROUTER_NOT_READY")[-1]["reasons"]
        assert re.match(r"worker [12] connection main: ", found[0])
        assert await one.metric("router_route_ready", route="passed") == 0
        server.cont()
        with trio.fail_after(20):
            while len(one.run.logged("ROUTER_READY")) < 2:
                await trio.sleep(0.05)
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0
        assert all("worker" not in line for line in one.run.logged("ROUTER_READY"))
        assert one.run.logged("ROUTER_READY")[-1]["timestamp"] > one.run.logged("ROUTER_NOT_READY")[-1]["timestamp"]


FAILS_ONCE = """
from contextlib import suppress

def handle(message):
    if message.subject.endswith(".7"):
        with suppress(FileExistsError):
            open(message.subject, "x").close()
            raise ValueError("the first attempt")
    return message
"""


async def test_the_installed_command_with_partitions_and_a_message_that_fails_once_goes_on_with_both_workers(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    (tmp_path / "handlers.py").write_text(FAILS_ONCE)
    how = 'handler = "handlers:handle"\nretry = { attempts = 3, initial = "10ms" }\n'
    config = CONFIG.replace('ack_wait = "2s"', "partitions = 4").replace("to = [", f"{how}to = [")
    command = [str(Path(sys.executable).with_name("router-trio"))]
    async with connect(server.url) as client, workers(server, tmp_path, config, python=command) as one:
        pids = await one.pids()
        shared = await one.until(lambda status: status["routes"]["stored"]["partitions"]["led"] == [0, 1, 2, 3])
        assert shared["routes"]["stored"]["partitions"]["lag"] is not None
        for subject in ("orders", "in"):
            await publish(client, subject, 0, 100)
        status = await one.until(
            lambda status: all(settled(status, name)["routed"] == 100 for name in ("stored", "passed"))
        )
        for name, subject in (("stored", "orders.7"), ("passed", "in.7")):
            failure = status["routes"][name]["last_failure"]
            assert (failure["subject"], failure["attempt"]) == (subject, 1)
            assert await one.metric("router_messages_failed_total", route=name, reason="handler_error") == 1
        assert_balanced(status)
        assert await one.pids() == pids, "no worker was lost"
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0
    assert one.run.logged("ROUTER_WORKER_LOST") == []


async def test_workers_share_the_partitions_of_a_route(server: NatsServer, streams: JetStream, tmp_path: Path) -> None:
    config = CONFIG.replace('ack_wait = "2s"', "partitions = 4")
    async with connect(server.url) as client, workers(server, tmp_path, config) as one:
        shared = await one.until(lambda status: status["routes"]["stored"]["partitions"]["led"] == [0, 1, 2, 3])
        assert shared["routes"]["stored"]["partitions"]["members"] == 2
        await publish(client, "orders", 0, 200)
        status = await one.until(lambda status: settled(status, "stored")["routed"] == 200)
        assert status["routes"]["stored"]["behind"]["messages"] == 0
        assert await one.metric("router_route_partitions_led_count", route="stored") == 4
        assert await one.metric("router_route_partitions_count", route="stored") == 4
        assert await one.metric("router_route_partitions_wanted_count", route="stored") == 0

        def shares() -> set[tuple[int, int]]:
            changed = one.run.logged("ROUTE_MEMBERS_CHANGED")
            return {(line["worker"], line["share"]) for line in changed if line["count"] == 2}

        await eventually(lambda: shares() == {(1, 2), (2, 2)})
