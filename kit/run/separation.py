"""The trainer as another user than the supervisor: log, result and keys are out of its reach.

In the image the supervisor is root with the five capabilities named here and stages run as the user
that N4090_TRAINER_USER names, with none. What a stage writes into is a sticky folder of the
supervisor's: the stage adds to it, and once its outputs are hashed they are taken from it, so that
no later stage can change them. Elsewhere (no such variable, or not root) both are one user, and the
result says so.
"""

from __future__ import annotations

import os
import pwd
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from kit.errors import PrerequisiteError

USER_VARIABLE = "N4090_TRAINER_USER"
# Bits of CapEff (capability.h), and what each is for.
CAPABILITIES = {
    "CHOWN": 0,  # take outputs from the trainer
    "DAC_OVERRIDE": 1,  # read and remove what the trainer or a bind mount's owner made
    "KILL": 5,  # stop a process of the trainer's
    "SETGID": 6,
    "SETUID": 7,  # become the trainer
}
_END_WITHIN_S = 5.0


@dataclass(frozen=True)
class TrainerUser:
    """The user that stages run as."""

    name: str
    uid: int
    gid: int

    def give(self, *folders: Path) -> None:
        """Lets the trainer add to these folders, and remove from them what it made itself."""
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o1777)

    def take(self, folder: Path) -> None:
        """Makes everything in `folder` the supervisor's; nothing of the trainer's may be running.

        The folder itself stays open for the next stage that writes there.
        """
        for parent, folders, files in os.walk(folder):
            for name in (*folders, *files):
                path = Path(parent, name)
                os.chown(path, os.getuid(), os.getgid(), follow_symlinks=False)
                if not path.is_symlink():
                    path.chmod(0o755 if name in folders else 0o644)

    def barred_from(self, folder: Path) -> Path | None:
        """The first folder on the way down to `folder` that this user may not enter, if any."""
        for path in (*reversed(folder.parents), folder):
            status = path.stat()
            shift = 6 if status.st_uid == self.uid else 3 if status.st_gid == self.gid else 0
            if not status.st_mode >> shift & 1:
                return path
        return None

    def end_processes(self) -> None:
        """Ends what a stage left behind, in whatever session it hides.

        Raises:
            PrerequisiteError: Some of it is still there after five seconds.
        """
        give_up = time.monotonic() + _END_WITHIN_S
        while left := _processes(self.uid):
            if time.monotonic() > give_up:
                raise PrerequisiteError(
                    f"{len(left)} processes of user `{self.name}` do not end",
                    hint="End them, or restart the container, then `n4090-kit run --resume`.",
                )
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.01)


def trainer_user() -> TrainerUser | None:
    """The user to run stages as; None where that is not asked for or cannot be done.

    Raises:
        PrerequisiteError: The variable names nobody.
    """
    name = os.environ.get(USER_VARIABLE)
    if not name or os.geteuid() != 0 or missing_capabilities():
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise PrerequisiteError(
            f"{USER_VARIABLE} names `{name}`, whom this system does not know",
            hint=f"Create that user, or unset {USER_VARIABLE}.",
        ) from error
    if entry.pw_uid == 0:
        return None
    return TrainerUser(name, entry.pw_uid, entry.pw_gid)


def missing_capabilities() -> list[str]:
    """Those of CAPABILITIES that this process lacks."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if line
    )
    effective = int(fields["CapEff"], 16)
    return [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]


def _processes(uid: int) -> list[int]:
    """Processes of `uid` that still run; by their status, as /proc/PID itself may be root's."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            lines = (entry / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if fields["State"][0] not in "ZX" and str(uid) in fields["Uid"].split():
            found.append(int(entry.name))
    return found
