"""Whether something answers at the address of a Ray cluster, before anything is trained for it.

Ray itself tries for minutes, and is asked only once the teacher stands.
"""

from __future__ import annotations

import re
import socket

from hksd.errors import UserError, describe

SECONDS = 4.0  # for an answer; the whole command line is to be told within five
FORM = re.compile(r"(?:ray://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
FOUND_BY_RAY = ("auto", "local")  # Ray looks these up itself
LAST_PORT = 65535


def must_answer(address: str | None, seconds: float = SECONDS) -> None:
    """Return when `address` is none, or something listens there.

    Raises:
        UserError: it has no form of an address, is of no machine, or nobody answers.
    """
    if address is None or address in FOUND_BY_RAY:
        return
    found = FORM.fullmatch(address)
    if found is None or not 0 < int(found[2]) <= LAST_PORT:
        raise UserError(f"--address {describe(address)}: must be auto or HOST:PORT, with a port from 1 to {LAST_PORT}")
    host, port = found[1].strip("[]"), int(found[2])
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except (socket.gaierror, UnicodeError) as error:  # a UnicodeError is a name that no machine can have
        raise UserError(f"--address {address}: there is no machine of the name {describe(host)} here") from error
    except OSError as error:
        reason = f"nothing within {seconds:g} s" if isinstance(error, TimeoutError) else error.strerror or error
        raise UserError(f"--address {address}: no Ray cluster answers there ({reason})") from error
