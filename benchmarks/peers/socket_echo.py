"""The limit: a bare socket that sends each message back, without a protocol. A connection begins with their length."""

import socket
import sys


def listen(address: str) -> socket.socket:
    if address.isdigit():
        return socket.create_server(("127.0.0.1", int(address)))
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    return listening


def receive(connection: socket.socket, message: memoryview) -> bool:
    """Fill `message`; False where the connection has ended."""
    while message:
        count = connection.recv_into(message)
        if not count:
            return False
        message = message[count:]
    return True


def echo(connection: socket.socket) -> None:
    length = bytearray(8)
    if not receive(connection, memoryview(length)):
        return
    message = memoryview(bytearray(int.from_bytes(length, "little")))
    while receive(connection, message):
        connection.sendall(message)


if __name__ == "__main__":
    with listen(sys.argv[1]) as listening:
        while True:
            connection, _ = listening.accept()
            if connection.family == socket.AF_INET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                echo(connection)
