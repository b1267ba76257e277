"""The curl transport on an event loop: takes what the engine wants from its desk and drives curl with the loop's readers, writers and
timers.

Requests of HTTP run on the loop itself. libcurl waits for some answers of file servers without giving the loop back, and such a server may
take its time: those run on loops of their own, by the server, so that one that says nothing holds up nobody else.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pycurl
import structlog
from uvloop import new_event_loop

from fetchbox._core import CurlCall, Engine
from fetchbox.curl.request import Order, Proxy, Request, order_of

log = structlog.get_logger("fetchbox.curl")

BEGIN, RESUME, DROP = 0, 1, 2
KEPT_HANDLES = 64
"""Handles of ended requests kept for the next ones, in each group."""
KEPT_CONNECTIONS = 256
FILE_SERVER_LOOPS = 32
"""Most loops for file servers; servers share them only when there are more."""
START_TIMEOUT = 10.0
STOP_TIMEOUT = 2.0


class CurlTransport:
    """Works at an engine's desk on the running loop, from `start` to `close`. Closing it leaves nothing open; the engine is told nothing
    more then."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._descriptor = -1
        self._where: dict[int, tuple[_Driver | _Apart, str | None]] = {}
        self._files = _FileServers(self._forget)

    def start(self) -> None:
        """Begins to take orders."""
        self._loop = asyncio.get_running_loop()
        self._driver = _Driver(self._loop, self._forget)
        self._descriptor = self._engine.serve_curl()
        self._loop.add_reader(self._descriptor, self._take)

    def close(self) -> None:
        """Ends everything that is under way."""
        if self._descriptor < 0:
            return
        self._loop.remove_reader(self._descriptor)
        self._descriptor = -1
        self._driver.close()
        self._files.close()
        self._where.clear()

    def _take(self) -> None:
        for number, what, call in self._engine.curl_news():
            if what == BEGIN and call is not None:
                order = order_of(call)
                server = None if order.is_http else urlsplit(order.url).netloc
                driver = self._driver if server is None else self._files.take(server)
                self._where[number] = (driver, server)
                driver.begin(number, call, order)
            elif (known := self._where.get(number)) is not None:
                driver, _ = known
                if what == RESUME:
                    driver.resume(number)
                else:
                    self._forget(number)
                    driver.drop(number)

    def _forget(self, number: int) -> None:
        """From any thread, once or more often."""
        _, server = self._where.pop(number, (None, None))
        if server is not None:
            self._files.give_back(server)


class _FileServers:
    """The loops of file servers. All requests to a server are on one, and while there are loops enough, no other server's are there."""

    def __init__(self, forget: Callable[[int], None]) -> None:
        self._forget = forget
        self._loops: list[_Apart] = []
        self._lock = threading.Lock()
        self._used: dict[str, tuple[_Apart, int]] = {}

    def take(self, server: str) -> _Apart:
        """The loop for one more request to a server."""
        with self._lock:
            apart, requests = self._used.get(server) or (self._most_idle(), 0)
            self._used[server] = (apart, requests + 1)
            return apart

    def give_back(self, server: str) -> None:
        """A request to a server is over."""
        with self._lock:
            apart, requests = self._used.pop(server)
            if requests > 1:
                self._used[server] = (apart, requests - 1)

    def close(self) -> None:
        for apart in self._loops:
            apart.stop()
        for apart in self._loops:
            apart.join()
        self._loops.clear()

    def _most_idle(self) -> _Apart:
        load = dict.fromkeys(self._loops, 0)
        for apart, requests in self._used.values():
            load[apart] += requests
        if len(load) < FILE_SERVER_LOOPS and all(load.values()):
            self._loops.append(_Apart(self._forget))
            return self._loops[-1]
        return min(load, key=load.__getitem__)


class _Driver:
    """Requests on one loop, by number; `forget` is called with that of each that ends by itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop, forget: Callable[[int], None]) -> None:
        self._loop = loop
        self._forget = forget
        self._groups: dict[tuple[int, Proxy | None], _Group] = {}
        self._requests: dict[int, tuple[_Group, Request]] = {}

    def begin(self, number: int, call: CurlCall, order: Order) -> None:
        # curl would let two logins at one proxy share a connection.
        key = (call.group, order.proxy)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(self._loop)
        request = group.begin(call, order, functools.partial(self._ended, number))
        if request is None:
            self._forget(number)
        else:
            self._requests[number] = (group, request)

    def resume(self, number: int) -> None:
        if (known := self._requests.get(number)) is not None:
            known[0].resume(known[1])

    def drop(self, number: int) -> None:
        if (known := self._requests.pop(number, None)) is not None:
            known[0].drop(known[1])

    def mark_dropped(self, number: int | None = None) -> None:
        """Lets curl know where it waits by itself; from any thread. All of them without a number."""
        for _, request in list(self._requests.values()) if number is None else filter(None, [self._requests.get(number)]):
            request.dropped = True

    def close(self) -> None:
        for group in self._groups.values():
            group.close()
        self._groups.clear()
        self._requests.clear()

    def _ended(self, number: int) -> None:
        self._requests.pop(number, None)
        self._forget(number)


class _Apart:
    """A driver on a loop and a thread of its own, spoken to from another."""

    def __init__(self, forget: Callable[[int], None]) -> None:
        self._loop = new_event_loop()
        self._driver = _Driver(self._loop, forget)
        self._thread = threading.Thread(target=self._run, name="fetchbox-curl-files", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._driver.close()
        finally:
            self._loop.close()

    def begin(self, number: int, call: CurlCall, order: Order) -> None:
        self._loop.call_soon_threadsafe(self._driver.begin, number, call, order)

    def resume(self, number: int) -> None:
        self._loop.call_soon_threadsafe(self._driver.resume, number)

    def drop(self, number: int) -> None:
        self._driver.mark_dropped(number)
        self._loop.call_soon_threadsafe(self._driver.drop, number)

    def stop(self) -> None:
        self._driver.mark_dropped()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def join(self) -> None:
        self._thread.join(STOP_TIMEOUT)


class _Group:
    """A CurlMulti: requests that may share connections."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Request, Callable[[], None]]] = {}
        self._watched: dict[int, int] = {}
        self._timer: asyncio.Handle | None = None
        self._closed = False
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, KEPT_CONNECTIONS)

    def begin(self, call: CurlCall, order: Order, ended: Callable[[], None]) -> Request | None:
        handle = self._idle.pop() if self._idle else pycurl.Curl()
        try:
            request = Request(handle, call, order)
        except Exception as error:  # an option that this libcurl does not have, a file that is not there
            log.error("curl does not take a request", error=str(error))
            call.end("SYSTEM_INTERNAL", f"curl does not take the request: {error}")
            return None
        self._running[handle] = (request, ended)
        self._multi.add_handle(handle)
        return request

    def resume(self, request: Request) -> None:
        try:
            request.resume()
        except pycurl.error as error:
            # What was kept back is handed out within the call, and may end the transfer there.
            self._end(request.handle, (int(error.args[0]), str(error.args[1])))
        self._reap()

    def drop(self, request: Request) -> None:
        self._free(request.handle)

    def close(self) -> None:
        self._closed = True
        for handle in list(self._running):
            self._free(handle)
        if self._timer is not None:
            self._timer.cancel()
        for descriptor in list(self._watched):
            self._unwatch(descriptor)
        for handle in self._idle:
            handle.close()
        self._multi.close()

    def _free(self, handle: Any) -> None:
        if self._running.pop(handle, None) is None:
            return
        self._multi.remove_handle(handle)
        if self._closed or len(self._idle) >= KEPT_HANDLES:
            handle.close()
        else:
            handle.reset()
            self._idle.append(handle)

    def _socket(self, event: int, descriptor: int, *_: Any) -> None:
        """libcurl says what it waits for."""
        before = self._watched.get(descriptor, 0)
        if event == pycurl.POLL_REMOVE:
            self._unwatch(descriptor)
            return
        self._watched[descriptor] = event
        for wanted, add, remove, bit in (
            (pycurl.POLL_IN, self._loop.add_reader, self._loop.remove_reader, pycurl.CSELECT_IN),
            (pycurl.POLL_OUT, self._loop.add_writer, self._loop.remove_writer, pycurl.CSELECT_OUT),
        ):
            if event & wanted and not before & wanted:
                add(descriptor, self._act, descriptor, bit)
            elif before & wanted and not event & wanted:
                remove(descriptor)

    def _unwatch(self, descriptor: int) -> None:
        watched = self._watched.pop(descriptor, 0)
        if watched & pycurl.POLL_IN:
            self._loop.remove_reader(descriptor)
        if watched & pycurl.POLL_OUT:
            self._loop.remove_writer(descriptor)

    def _set_timer(self, milliseconds: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if milliseconds >= 0 and not self._closed:
            # Never at once: libcurl may not be called from its own callback.
            self._timer = self._loop.call_later(milliseconds / 1000, self._act, pycurl.SOCKET_TIMEOUT, 0)

    def _act(self, descriptor: int, bits: int) -> None:
        if descriptor == pycurl.SOCKET_TIMEOUT:
            self._timer = None
        self._multi.socket_action(descriptor, bits)
        self._reap()

    def _reap(self) -> None:
        more = 1
        while more:
            more, well, badly = self._multi.info_read()
            for handle in well:
                self._end(handle, None)
            for handle, number, text in badly:
                self._end(handle, (number, text))

    def _end(self, handle: Any, failure: tuple[int, str] | None) -> None:
        known = self._running.get(handle)
        if known is None:
            return
        request, ended = known
        if failure is None:
            request.done()
        else:
            request.failed(*failure)
        ended()
        self._free(handle)


class CurlThread:
    """The transport on a loop and a thread of its own, for whoever has no loop to give."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="fetchbox-curl", daemon=True)
        self._thread.start()
        if not self._started.wait(START_TIMEOUT):
            raise TimeoutError(f"the curl transport did not start within {START_TIMEOUT:g} s")
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Ends what is under way and the thread."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(STOP_TIMEOUT)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(self._work())

    async def _work(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        transport = CurlTransport(self._engine)
        try:
            transport.start()
        except BaseException as error:
            self._failure = error
            return
        finally:
            self._started.set()
        try:
            await self._stop.wait()
        finally:
            transport.close()
