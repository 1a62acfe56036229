"""A TCP proxy of the tests' own, which cuts connections by a seeded choice."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

BLOCK = 4096
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the other side gets a reset, as from a dead machine


class Proxy:
    """Forwards to a port of this machine.

    While `cutting`, each connection may carry so many bytes, in both directions together, as were
    drawn for it; then both of its ends are cut, in half of the cases by a reset.
    """

    def __init__(self, target: int, budget: tuple[int, int], seed: int) -> None:
        self._target, self._budget = target, budget
        self._choice, self._lock = random.Random(seed), threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.cutting = False
        self.cut = 0
        """Connections that were cut."""
        self.connections = 0

    def serve(self) -> None:
        """Until it is closed."""
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def note_cut(self) -> None:
        """One more."""
        with self._lock:
            self.cut += 1

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            near.close()
            return
        with self._lock:
            self.connections += 1
            connection = Connection(
                self, near, far, self._choice.randint(*self._budget), self._choice.random() < 0.5
            )
        connection.carry()


class Connection:
    """Two sockets, and what may still pass between them."""

    def __init__(
        self, proxy: Proxy, near: socket.socket, far: socket.socket, budget: int, resets: bool
    ) -> None:
        self._proxy, self._near, self._far = proxy, near, far
        self._budget, self._resets = budget, resets
        self._lock = threading.Lock()

    def carry(self) -> None:
        """Both ways until either end closes, or the budget is used up."""
        back = threading.Thread(target=self._pump, args=(self._far, self._near), daemon=True)
        back.start()
        self._pump(self._near, self._far)
        back.join()
        for end in (self._near, self._far):
            if self._is_reset():
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            end.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(BLOCK):
                if self._spent(len(data)):
                    break
                sink.sendall(data)
        # Either wakes the other pump; only the second says good-bye to who is at the other end.
        how = socket.SHUT_RD if self._is_reset() else socket.SHUT_RDWR
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(how)

    def _spent(self, size: int) -> bool:
        """Whether these bytes are too many; the connection is then cut."""
        with self._lock:
            was_open = self._budget >= 0
            if self._proxy.cutting:
                self._budget -= size
            if self._budget < 0 and was_open:
                self._proxy.note_cut()
            return self._budget < 0

    def _is_reset(self) -> bool:
        return self._resets and self._budget < 0


@contextmanager
def proxy(target: int, budget: tuple[int, int], seed: int = 1) -> Iterator[Proxy]:
    """A proxy that serves while the block lasts; it begins without cutting."""
    made = Proxy(target, budget, seed)
    thread = threading.Thread(target=made.serve, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.close()
        thread.join(10)
