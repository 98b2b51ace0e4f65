"""Detects forbidden actions of code that reads an untrusted file, for `fuzz.py`.

A process with a `Monitor` keeps it until it ends: Python's audit hooks cannot be removed.
"""

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

SECONDS = 10  # of CPU time, which a busy machine does not change; `fuzz.py` detects waiting
MEMORY = 2 << 30  # bytes of address space more than at the start; half of it may be in use
RUN_EVENTS = {  # audit events that run code or open a connection
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
    "subprocess.Popen", "pty.spawn", "socket.connect", "socket.getaddrinfo", "pickle.find_class",
    "webbrowser.open", "os.startfile", "urllib.Request", "http.client.connect",
}  # fmt: skip
CHANGE_EVENTS = {  # audit events that change a file: the positions of its paths
    "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.mkdir": (0,), "os.link": (1,),
    "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,),
    "shutil.rmtree": (0,), "shutil.move": (0, 1),
}  # fmt: skip
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Forbidden(BaseException):
    """A reader did something forbidden. Not an `Exception`, so that no handler catches it."""


class Monitor:
    """Monitors this process.

    Attributes:
        allowed: Folders in which files may be written.
        findings: Forbidden actions since `start`.
    """

    def __init__(self) -> None:
        self.allowed: list[Path] = []
        self.findings: list[str] = []
        self._on = False
        self._modules: set[str] = set()
        signal.signal(signal.SIGPROF, self._too_long)
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(self._hook)

    def start(self, *allowed: Path) -> None:
        """Start: from now on, only these folders may be written, for ten seconds of CPU time."""
        self.allowed = [folder.resolve() for folder in allowed]
        self.findings = []
        self._modules = set(sys.modules)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak of memory
        self._peak = self._memory()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        self._on = True

    def stop(self) -> None:
        """Stop, and check memory and imported modules."""
        self._on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        if (used := self._memory() - self._peak) > MEMORY // 2:
            self.findings.append(f"memory: {used >> 20} MiB")
        for name in set(sys.modules) - self._modules:
            file = getattr(sys.modules.get(name), "__file__", None)
            if file and any(Path(file).resolve().is_relative_to(f) for f in self.allowed):
                self.findings.append(f"code run: import of {file}")

    def _memory(self) -> int:
        """Return the peak of memory in bytes."""
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) << 10

    def _too_long(self, *_: Any) -> None:
        self.findings.append(f"hang: over {SECONDS} s")
        raise Forbidden

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "subprocess.Popen" and list(args[1][:2]) == ["git", "-C"]:
            return  # the package asks git for the commit
        if event in RUN_EVENTS:
            self._forbid(f"code run: {event} {str(args)[:200]}")
        elif event == "open":
            path, mode, flags = args
            writes = flags & WRITE_FLAGS if isinstance(flags, int) else set(str(mode)) & set("wax+")
            if writes and not isinstance(path, int):
                self._check(event, path, -1)
        elif event in CHANGE_EVENTS:
            # The last argument is the descriptor of the folder that the path is relative to.
            last = args[-1] if isinstance(args[-1], int) and event != "os.truncate" else -1
            for index in CHANGE_EVENTS[event]:
                self._check(event, args[index], last)

    def _check(self, event: str, path: Any, folder: int) -> None:
        if isinstance(path, int):  # a descriptor: its file was checked when it was opened
            return
        file = Path(f"/proc/self/fd/{folder}" if folder >= 0 else "", os.fsdecode(path))
        place = file.parent.resolve() / file.name  # the link itself, not its target
        inside = any(place.is_relative_to(folder) for folder in self.allowed)
        if not inside and place != Path(os.devnull):
            self._forbid(f"write outside: {event} {place}")

    def _forbid(self, what: str) -> None:
        self.findings.append(what)
        raise Forbidden(what)
