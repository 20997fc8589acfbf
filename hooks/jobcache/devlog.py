"""One line to the system's log, without ever waiting for it.

syslog(3) blocks for as long as a stuck daemon does; a hook may not. On the hot path: `_socket` alone, since `socket`
imports `enum` and `selectors` for what is one datagram.
"""

import _socket
import os
import time

DEFAULT = "/dev/log"
_DAEMON = 3  # the facility
_SEVERITY = {"error": 3, "warning": 4, "info": 6, "debug": 7}


def send(address: str, level: str, line: str) -> bool:
    """Send `line` to the datagram socket at `address` in RFC 3164's local form; return whether it was taken."""
    stamp = time.strftime("%b %e %H:%M:%S")
    head = f"<{_DAEMON * 8 + _SEVERITY[level]}>{stamp} jobcache[{os.getpid()}]: "
    try:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        try:
            sock.connect(address)
            sock.send((head + line).encode("ascii", "backslashreplace"))
        finally:
            sock.close()
    except OSError:
        return False
    return True
