"""What lies between a client and a server, and goes wrong there: lines that break, busy servers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Proxy:
    """Between client and server; cuts lines when told to.

    ``deaf``: how many answers from now on are lost after the server has given them.
    """

    def __init__(self, url: str) -> None:
        self._to = int(url.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lines: list[socket.socket] = []
        self.deaf = 0
        self.accepted = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def cut(self) -> None:
        """End every line that is open."""
        for line in self._lines:
            _shut(line)

    def close(self) -> None:
        """Stop listening, end every line."""
        _shut(self._listener)
        self._listener.close()
        self.cut()
        self._thread.join()

    def _accept(self) -> None:
        pumps = []
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                break
            self.accepted += 1
            far = socket.create_connection(("127.0.0.1", self._to))
            self._lines += [near, far]
            for source, sink in ((near, far), (far, near)):
                pumps.append(
                    threading.Thread(target=self._pump, args=(source, sink, source is far))
                )
                pumps[-1].start()
        for pump in pumps:
            pump.join()
        for line in self._lines:
            line.close()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        try:
            while data := source.recv(65536):
                if answers and self.deaf:
                    self.deaf -= 1
                    break
                sink.sendall(data)
        except OSError:
            pass
        _shut(source)
        _shut(sink)


def _shut(line: socket.socket) -> None:
    try:
        line.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


@contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    """A proxy before a server."""
    proxy = Proxy(url)
    try:
        yield proxy
    finally:
        proxy.close()


class Scripted(ThreadingHTTPServer):
    """Does not wait at its end for clients that keep their lines open."""

    block_on_close = False


@contextmanager
def scripted(*answers: tuple[int, dict[str, str], str]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers, the last for ever; its address, and what it was asked."""
    left, asked = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, headers, text = left.pop(0) if len(left) > 1 else left[0]
            self.send_response_only(status)
            for name, value in {**headers, "Content-Length": str(len(text))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with Scripted(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()
