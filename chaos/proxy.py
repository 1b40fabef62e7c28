"""A TCP proxy that can be told to misbehave: one listening port, one server behind it.

All proxies of a process run on one event loop in a thread of its own; the methods of `Proxy` may be
called from any thread. What it can do to the connections that it carries:

  cut        ends them all at once, by reset or by an orderly close
  tear       lets some more bytes through and resets in the middle of whatever comes then
  mute       swallows what the server answers, while the server still gets everything
  half_open  takes the server away without a word: the client's side stays open and silent
  stall      holds every byte in both directions until told to go on
  delay      holds every piece for a while;  throttle  bounds the bytes per second
  refuse     accepts nobody until told to

No byte is ever changed or reordered.
"""

import asyncio
import socket
import struct
import threading
import time

PIECE_BYTES = 64 << 10
RESET = struct.pack("ii", 1, 0)    # SO_LINGER, no wait: close() sends a reset


class Connection:
    def __init__(self, client, server):
        self.client, self.server = client, server    # the writers of both sides
        self.muted = False
        self.abandoned_at = None    # when its server was taken away
        self.bytes_left = None      # until it is torn

    def end(self, reset):
        for writer in (self.client, self.server):
            sock = writer.get_extra_info("socket")
            if reset and sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()
            else:
                writer.close()


class Proxy:
    def __init__(self, loop, name, port, server_port):
        self.loop, self.name, self.port, self.server_port = loop, name, port, server_port
        self.connections = set()
        self.delay_seconds = 0.0
        self.bytes_per_second = None
        self.flows = asyncio.Event()
        self.flows.set()
        self.refusing = False
        self.listener = None

    # From the loop's thread.

    async def listen(self):
        self.listener = await asyncio.start_server(self.carry, "127.0.0.1", self.port, limit=PIECE_BYTES)

    async def carry(self, client_reader, client):
        try:
            if self.refusing:
                raise ConnectionRefusedError
            server_reader, server = await asyncio.open_connection("127.0.0.1", self.server_port, limit=PIECE_BYTES)
        except OSError:
            client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.transport.abort()
            return
        connection = Connection(client, server)
        self.connections.add(connection)
        there = asyncio.create_task(self.pump(connection, client_reader, server, from_client=True))
        back = asyncio.create_task(self.pump(connection, server_reader, client, from_client=False))
        await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        if connection.abandoned_at is not None:
            # The client of a server that is gone hears nothing; it has to find out by itself.
            await there
        connection.end(reset=False)
        await asyncio.wait((there, back))
        self.connections.discard(connection)

    async def pump(self, connection, reader, writer, from_client):
        try:
            while piece := await reader.read(PIECE_BYTES):
                if connection.abandoned_at is not None or (connection.muted and not from_client):
                    continue
                await self.flows.wait()
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                if self.bytes_per_second:
                    await asyncio.sleep(len(piece) / self.bytes_per_second)
                if connection.bytes_left is not None:
                    piece, torn = piece[:connection.bytes_left], len(piece) >= connection.bytes_left
                    connection.bytes_left -= len(piece)
                    writer.write(piece)
                    await writer.drain()
                    if torn:
                        connection.end(reset=True)
                        return
                    continue
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass    # either side is gone: the other one is told below

    def all(self, act):
        """Acts on every connection that has a server; one that has none can only be ended by its client."""
        connections = [connection for connection in self.connections if connection.abandoned_at is None]
        for connection in connections:
            act(connection)
        return len(connections)

    # From any thread.

    def call(self, act, *arguments):
        async def run():
            return act(*arguments)
        return asyncio.run_coroutine_threadsafe(run(), self.loop).result()

    def cut(self, reset=True):
        """Ends every connection; returns how many there were."""
        return self.call(self.all, lambda connection: connection.end(reset))

    def tear(self, after_bytes):
        def act(connection):
            connection.bytes_left = after_bytes
        return self.call(self.all, act)

    def mute(self):
        def act(connection):
            connection.muted = True
        return self.call(self.all, act)

    def half_open(self):
        def act(connection):
            connection.abandoned_at = time.monotonic()
            connection.server.transport.abort()
        return self.call(self.all, act)

    def oldest_half_open_seconds(self):
        """How long the client that has waited longest has not noticed yet; 0 if there is none."""
        def oldest():
            times = [c.abandoned_at for c in self.connections if c.abandoned_at is not None]
            return time.monotonic() - min(times) if times else 0.0
        return self.call(oldest)

    def stall(self):
        self.call(self.flows.clear)

    def slow(self, delay_seconds=0.0, bytes_per_second=None):
        self.delay_seconds, self.bytes_per_second = delay_seconds, bytes_per_second

    def refuse(self):
        self.refusing = True
        return self.cut()

    def heal(self):
        """Back to an honest wire. Connections that are half open stay so."""
        self.refusing = False
        self.slow()
        self.call(self.flows.set)


class Proxies:
    """The event loop that carries them all."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="proxies", daemon=True).start()

    def open(self, name, port, server_port):
        async def make():
            proxy = Proxy(self.loop, name, port, server_port)
            await proxy.listen()
            return proxy
        return asyncio.run_coroutine_threadsafe(make(), self.loop).result()
