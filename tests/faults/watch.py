"""What a reader may not do with a stranger's file, and how that is noticed, for `fuzz.py`.

Once a process watches, it does so until its end: Python's audit hooks cannot be taken off.
"""

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

SECONDS = 10  # of computing, so that a busy machine is no finding; `fuzz.py` sees one that waits
MEMORY = 2 << 30  # bytes more than at the start, of addresses; half of that in use
RUNS = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
    "subprocess.Popen", "pty.spawn", "socket.connect", "socket.getaddrinfo", "pickle.find_class",
    "webbrowser.open", "os.startfile", "urllib.Request", "http.client.connect",
}  # fmt: skip
CHANGES = {
    "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.mkdir": (0,), "os.link": (1,),
    "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,),
    "shutil.rmtree": (0,), "shutil.move": (0, 1),
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Forbidden(BaseException):
    """A reader did what it must not: no handler of errors may take it for one."""


class Watch:
    """The watch over one process.

    Attributes:
        allowed: Folders in which files may be written.
        seen: What has been noticed since `start`.
    """

    def __init__(self) -> None:
        self.allowed: list[Path] = []
        self.seen: list[str] = []
        self._on = False
        self._modules: set[str] = set()
        signal.signal(signal.SIGPROF, self._too_long)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(self._hook)

    def start(self, *allowed: Path) -> None:
        """From here on, only those folders are written to, and ten seconds are left."""
        self.allowed = [folder.resolve() for folder in allowed]
        self.seen = []
        self._modules = set(sys.modules)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory
        self._peak = self._memory()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        self._on = True

    def stop(self) -> None:
        """Look at what can only be seen at the end."""
        self._on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        if (used := self._memory() - self._peak) > MEMORY // 2:
            self.seen.append(f"memory: {used >> 20} MiB")
        for name in set(sys.modules) - self._modules:
            file = getattr(sys.modules.get(name), "__file__", None)
            if file and any(Path(file).resolve().is_relative_to(f) for f in self.allowed):
                self.seen.append(f"code run: import of {file}")

    def _memory(self) -> int:
        """The peak in bytes."""
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10

    def _too_long(self, *_: Any) -> None:
        self.seen.append(f"hang: over {SECONDS} s")
        raise Forbidden

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "subprocess.Popen" and list(args[1][:2]) == ["git", "-C"]:
            return  # our own word for which commit this is
        if event in RUNS:
            self._forbid(f"code run: {event} {str(args)[:200]}")
        elif event == "open":
            path, mode, flags = args
            writes = flags & WRITES if isinstance(flags, int) else set(str(mode)) & set("wax+")
            if writes and not isinstance(path, int):
                self._check(event, path, -1)
        elif event in CHANGES:
            # Their last argument is the folder's descriptor that the path is relative to.
            last = args[-1] if isinstance(args[-1], int) and event != "os.truncate" else -1
            for index in CHANGES[event]:
                self._check(event, args[index], last)

    def _check(self, event: str, path: Any, folder: int) -> None:
        if isinstance(path, int):  # a descriptor, which was opened before
            return
        file = Path(f"/proc/self/fd/{folder}" if folder >= 0 else "", os.fsdecode(path))
        place = file.parent.resolve() / file.name  # a link itself, not what it leads to
        inside = any(place.is_relative_to(folder) for folder in self.allowed)
        if not inside and place != Path(os.devnull):
            self._forbid(f"write outside: {event} {place}")

    def _forbid(self, what: str) -> None:
        self.seen.append(what)
        raise Forbidden(what)
