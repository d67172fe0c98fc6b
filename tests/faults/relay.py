"""A way to a server that can be killed: `python relay.py HERE SERVER` hands bytes on, both ways.

Each is a port of 127.0.0.1, HOST:PORT, or the path of a Unix socket, which leads from one network to another.
"""

import asyncio
import sys


async def _hand_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    except ConnectionError:
        pass
    finally:
        target.close()


async def main(here: str, server: str) -> None:
    """Until it is killed."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if "/" in server:
                server_reader, server_writer = await asyncio.open_unix_connection(server)
            else:
                server_reader, server_writer = await asyncio.open_connection(*_host_and_port(server))
        except OSError:
            writer.close()
            return
        await asyncio.gather(_hand_on(reader, server_writer), _hand_on(server_reader, writer))

    if "/" in here:
        listening = await asyncio.start_unix_server(connected, here)
    else:
        listening = await asyncio.start_server(connected, *_host_and_port(here))
    async with listening:
        await listening.serve_forever()


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host or "127.0.0.1", int(port)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
