"""A network between the workers and the target: every byte arrives later by the same time."""

import asyncio
import subprocess
import sys


class Delay:
    """In a process of its own, so that it shares no interpreter with who measures."""

    def __init__(self, port, seconds):
        self.process = subprocess.Popen([sys.executable, __file__, str(port), str(seconds)], stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())

    def stop(self):
        self.process.terminate()
        self.process.wait()


async def carry(reader, writer, seconds):
    """Passes on what comes, each piece `seconds` after it came."""
    pieces = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def write():
        while (piece := await pieces.get()) is not None:
            due, data = piece
            await asyncio.sleep(max(0.0, due - loop.time()))
            writer.write(data)
            await writer.drain()
        writer.close()

    writing = asyncio.create_task(write())
    while data := await reader.read(1 << 18):
        await pieces.put((loop.time() + seconds, data))
    await pieces.put(None)
    await writing


async def serve(port, seconds):
    async def connected(reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, far_writer, seconds), carry(far_reader, writer, seconds), return_exceptions=True)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
