"""One line to the system's log, without waiting for it but for a moment.

syslog(3) blocks for as long as a stuck daemon does; a hook may not. One that is busy is asked again for a fifth of a
second. On the hot path: `_socket` alone, since `socket` imports `enum` and `selectors` for what is one datagram.
"""

import _socket
import os
import time

DEFAULT = "/dev/log"
_DAEMON = 3  # the facility
_LOOKS, _PAUSE = 20, 0.01  # at a daemon whose queue is full: many jobs may start at once
_SEVERITY = {"error": 3, "warning": 4, "info": 6, "debug": 7}


def send(address: str, level: str, line: str) -> bool:
    """Send `line` to the datagram socket at `address` in RFC 3164's local form; return whether it was taken."""
    stamp = time.strftime("%b %e %H:%M:%S")
    head = f"<{_DAEMON * 8 + _SEVERITY[level]}>{stamp} jobcache[{os.getpid()}]: "
    try:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        try:
            sock.connect(address)
            _push(sock, (head + line).encode("ascii", "backslashreplace"))
        finally:
            sock.close()
    except OSError:
        return False
    return True


def _push(sock: "_socket.socket", data: bytes) -> None:
    for _ in range(_LOOKS):
        try:
            sock.send(data)
            return
        except BlockingIOError:
            time.sleep(_PAUSE)
    sock.send(data)
