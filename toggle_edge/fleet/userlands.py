"""Debian for aarch64 under emulation: boards on loopback with a glibc, a Python and an sshd of their own.

Packages are only unpacked, never configured: that takes seconds in place of minutes under emulation, and Python, sshd
and a shell need no more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from toggle_edge.cache import cache_folder, locked
from toggle_edge.errors import FleetError
from toggle_edge.fleet.namespaces import PROCESSOR, Enclosure, Mount
from toggle_edge.fleet.sshd import Surroundings

RELEASES = ("bullseye", "bookworm")
"""Debian 11 (glibc 2.31, Python 3.9) and 12 (glibc 2.36, Python 3.11)."""

USER, _UID = "edge", 1000
_MADE = 1
"""Raised when what is put into a root file system changes, so that cached ones are made anew."""

_PACKAGES = "python3,python3-minimal,openssh-server,openssh-sftp-server"
_UNUSED = (
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/zoneinfo",
    "usr/share/info",
    "boot",
)
_FILES = {
    "etc/passwd": f"root:x:0:0::/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\n"
    f"{USER}:x:{_UID}:{_UID}::/home/{USER}:/bin/sh\n",
    "etc/shadow": f"root:*:1::::::\nsshd:*:1::::::\n{USER}:*:1::::::\n",
    "etc/group": f"root:x:0:\nnogroup:x:65534:\n{USER}:x:{_UID}:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
}
_FOLDERS = ("dev", "proc", "sys", "tmp", "run", "etc/ssh", "root", f"home/{USER}")

_CORE = """\
processor\t: {core}
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd42
CPU revision\t: 1

"""
_VARIABLES = {"QEMU_CPU": PROCESSOR}


def userland(release: str, cache: Path | None = None) -> Path:
    """The root file system of one of RELEASES, fetched and unpacked unless the cache has it.

    Raises FleetError where it cannot be fetched.
    """
    folder = (cache or cache_folder() / "userlands") / f"{release}-arm64-{_MADE}"
    with locked(folder.with_name(folder.name + ".lock")):
        if not folder.is_dir():
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                _make(release, partial)
                (partial / "root").rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def board(folder: Path, release: str, name: str = "board") -> Surroundings:
    """A board with that Debian: its home lies in `folder`, the rest is the cached root file system, read-only.

    Its processor and sensors are made up, since an engine that found this machine's would crash. Raises FleetError
    where `userland` does.
    """
    root, folder = userland(release), folder.absolute()
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    os.chown(home, _UID, _UID)
    cores = os.cpu_count() or 1
    (folder / "cpuinfo").write_text("".join(_CORE.format(core=core) for core in range(cores)))
    for path, text in {
        "devices/system/cpu/possible": f"0-{cores - 1}",
        "devices/system/cpu/present": f"0-{cores - 1}",
        "devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
        "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000",
        "class/thermal/thermal_zone0/temp": "41000",
    }.items():
        _write(folder / "sys" / path, text + "\n")
    mounts = [
        Mount("", source=str(root), read_only=True),
        Mount("/proc", "proc"),
        Mount("/proc/cpuinfo", source=str(folder / "cpuinfo")),
        Mount("/sys", source=str(folder / "sys"), read_only=True),
        Mount("/dev", source="/dev"),
        Mount("/tmp", "tmpfs", options="mode=1777"),  # noqa: S108 - inside, where it is fresh
        Mount("/run", "tmpfs", options="mode=755"),
        Mount("/run/sshd", "tmpfs", options="mode=755"),
        Mount("/etc/ssh", source=str(folder / "ssh"), read_only=True),
        Mount(f"/home/{USER}", source=str(home)),
    ]
    return Surroundings(
        user=USER,
        root="toggle-edge",
        python="/usr/bin/python3",
        keys="/etc/ssh",
        server="/usr/sbin/sshd",
        enclosure=Enclosure(name, mounts, str(root), foreign=True, environment=_VARIABLES),
        variables=_VARIABLES,
    )


def _make(release: str, partial: Path) -> None:
    unpack = shutil.which("dpkg-deb")
    if unpack is None or shutil.which("debootstrap") is None:
        raise FleetError(f"a root file system of Debian {release}: expected debootstrap and dpkg-deb")
    fetched, root = partial / "fetched", partial / "root"
    root.mkdir(parents=True)
    command = ["debootstrap", "--download-only", "--arch=arm64", "--variant=minbase"]
    command += [f"--include={_PACKAGES}", release, str(fetched)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    packages = sorted(fetched.glob("var/cache/apt/archives/*.deb"))
    if done.returncode != 0 or not packages:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["no message"]
        raise FleetError(f"a root file system of Debian {release}: debootstrap could not fetch it: {last[0]}")
    for package in packages:
        subprocess.run([unpack, "-x", str(package), str(root)], check=True)
    for unused in _UNUSED:
        shutil.rmtree(root / unused, ignore_errors=True)
    for path in _FOLDERS:
        (root / path).mkdir(parents=True, exist_ok=True)
    for path, text in _FILES.items():
        _write(root / path, text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
