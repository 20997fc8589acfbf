"""Datagrams to the system log's socket, with a bounded wait: syslog(3) would block as long as a stuck daemon does.

It uses `_socket`, because `socket` imports `enum` and `selectors`.
"""

import _socket
import os
import time

DEFAULT = "/dev/log"
_FACILITY = 3  # daemon
_SEVERITY = {"error": 3, "warning": 4, "info": 6, "debug": 7}
_RETRIES, _PAUSE = 20, 0.01  # seconds; the daemon's queue may be full when many jobs start at once


def send(address: str, level: str, line: str) -> bool:
    """Send `line` in RFC 3164's local form to the socket at `address`; return whether the socket accepted it."""
    stamp = time.strftime("%b %e %H:%M:%S")
    head = f"<{_FACILITY * 8 + _SEVERITY[level]}>{stamp} jobcache[{os.getpid()}]: "
    try:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        try:
            sock.connect(address)
            _send_when_ready(sock, (head + line).encode("ascii", "backslashreplace"))
        finally:
            sock.close()
    except OSError:
        return False
    return True


def _send_when_ready(sock: "_socket.socket", data: bytes) -> None:
    """Send, and retry while the queue is full. Raise OSError."""
    for _ in range(_RETRIES):
        try:
            sock.send(data)
            return
        except BlockingIOError:
            time.sleep(_PAUSE)
    sock.send(data)
