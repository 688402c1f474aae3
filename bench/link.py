"""Two network namespaces joined by a link of a given rate: processes in them talk as two machines do.

Linux, root, ``ip`` and ``tc`` (iproute2) are needed; nothing of the machine's own network is touched.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
ADDRESSES = ("10.231.77.1", "10.231.77.2")
BURST, LATENCY = "256kb", "50ms"  # of tc's token bucket: what may be sent at once, and how long may be queued


def obstacle() -> str | None:
    """Why no such link can be made here, or None."""
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool, path=PATH) is None]
    if missing:
        return f"{' and '.join(missing)} (iproute2) not found"
    trial = f"wuskern-{os.getpid()}-trial"
    try:
        _call("ip", "netns", "add", trial)
        _call("ip", "netns", "delete", trial)
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made: {error.stderr.strip()}"
    return None


@contextlib.contextmanager
def shaped(rate: str) -> Iterator[tuple["End", "End"]]:
    """``rate`` as tc writes it, such as "1gbit", in each direction."""
    ends = tuple(End(f"wuskern-{os.getpid()}-{i}", f"wusk{os.getpid()}-{i}"[:15], ADDRESSES[i]) for i in range(2))
    try:
        for end in ends:
            _call("ip", "netns", "add", end.namespace)
        first, second = ends
        link = "ip", "link", "add", first.interface, "netns", first.namespace, "type", "veth"
        _call(*link, "peer", "name", second.interface, "netns", second.namespace)
        for end in ends:
            end.call("ip", "address", "add", f"{end.address}/24", "dev", end.interface)
            for interface in ("lo", end.interface):
                end.call("ip", "link", "set", interface, "up")
            end.call(
                *("tc", "qdisc", "add", "dev", end.interface, "root"),
                *("tbf", "rate", rate, "burst", BURST, "latency", LATENCY),
            )
        yield first, second
    finally:
        for end in ends:
            with contextlib.suppress(subprocess.CalledProcessError):
                _call("ip", "netns", "delete", end.namespace)


class End:
    """One side: ``address`` of ``interface`` in ``namespace``."""

    def __init__(self, namespace: str, interface: str, address: str) -> None:
        self.namespace, self.interface, self.address = namespace, interface, address

    @property
    def prefix(self) -> tuple[str, ...]:
        """Before a command that shall run here."""
        return shutil.which("ip", path=PATH) or "ip", "netns", "exec", self.namespace

    def call(self, *command: str) -> None:
        _call(*self.prefix, *command)


def sent(interface: str) -> int:
    """Bytes that this process's namespace has sent so far, headers included."""
    return int(Path(f"/sys/class/net/{interface}/statistics/tx_bytes").read_text())


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"PATH": PATH})
