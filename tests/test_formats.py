"""The formats that `docs/formats.md` describes, against files that never change, on both sides.

The device's side is its own code under the oldest Python of this machine, without site packages. Files in
`golden/refused` must be refused by both; the table says with what words.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from interpreters import VERSIONS, interpreter
from toggle_runtime import records
from toggle_runtime.records import Manifest, RunRecord, from_json, to_json
from toggle_runtime.trust import read_key, signature_holds

from toggle_edge.bundle import MAX_MANIFEST_BYTES, MAX_PROBES_BYTES, PROBES, Bundle, probes_of, read_bundle
from toggle_edge.errors import BundleError
from toggle_edge.fleet.deploy import MAX_RECORD_BYTES, MAX_TRACES_BYTES
from toggle_edge.fleet.device import Budget, Device
from toggle_edge.fleet.transport import MAX_LINE_BYTES
from toggle_edge.signing import signer

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
FORMATS = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
OLDEST = next((path for version in VERSIONS if (path := interpreter(version))), sys.executable)

REFUSED = {
    "manifest-digest-short": "64 lower-case hex digits",
    "manifest-kept-before-4": "a manifest of version 3 cannot say what is kept",
    "manifest-kept-block-unknown": "expected some of 3 blocks",
    "manifest-kept-empty": "expected some of 3 blocks",
    "manifest-kept-group-twice": "expected some of 2 kv groups of block 0, each once",
    "manifest-missing-key": "missing key 'target'",
    "manifest-mode-unknown": "default_mode: expected one of",
    "manifest-path-absolute": "inside the bundle",
    "manifest-path-hidden": "inside the bundle",
    "manifest-path-parent": "inside the bundle",
    "manifest-signature-short": "128 lower-case hex digits",
    "manifest-size-negative": "bytes >= 0",
    "manifest-truncated": "expected JSON",
    "manifest-unknown-key": "unknown key 'surprise'",
    "manifest-version-5": "written by a newer toggle-edge: upgrade this side",
    "manifest-version-text": "this side reads 1, 2, 3 and 4",
    "record-bool-for-number": "expected a number",
    "record-deep": "expected JSON",
    "record-half-pair": "expected text that is UTF-8",
    "record-half-pair-key": "expected text that is UTF-8",
    "record-infinite": "expected a finite number",
    "record-nan": "not a finite number",
    "record-unknown-key": "unknown key 'score'",
    "record-version-5": "written by a newer toggle-edge: upgrade this side",
}


def kind_of(name: str) -> type[Manifest] | type[RunRecord]:
    return Manifest if name.startswith("manifest") else RunRecord


def on_the_device(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code that imports `toggle_runtime` as an agent's Python would."""
    prefix = f"import sys; sys.path.insert(0, {str(ROOT / 'runtime')!r}); sys.dont_write_bytecode = True\n"
    return subprocess.run(
        [OLDEST, "-I", "-S", "-c", prefix + code, *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "name",
    [
        "manifest-v3",
        "manifest-v3-unsigned",
        "manifest-v4",
        "manifest-v4-unsigned",
        "manifest-v4-whole",
        "record-v4",
    ],
)
def test_what_is_written_is_read_and_written_again_byte_by_byte(name: str) -> None:
    text = (GOLDEN / f"{name}.json").read_text(encoding="utf-8")
    assert to_json(from_json(kind_of(name), text)) == text
    kind = kind_of(name).__name__
    done = on_the_device(
        f"from toggle_runtime.records import {kind}, from_json, to_json\n"
        f"text = open(sys.argv[1], encoding='utf-8').read()\n"
        f"sys.exit(to_json(from_json({kind}, text)) != text)\n",
        str(GOLDEN / f"{name}.json"),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("kind", "version"), [("manifest", 1), ("manifest", 2), ("record", 1), ("record", 2), ("record", 3)]
)
def test_earlier_versions_are_still_read(kind: str, version: int) -> None:
    read = from_json(kind_of(kind), (GOLDEN / f"{kind}-v{version}.json").read_text(encoding="utf-8"))
    assert read.version == version
    if isinstance(read, Manifest):
        assert (read.signature is None) == (version == 1)
        if version == 1:
            with pytest.raises(BundleError, match="a version without signatures"):
                signer(read, {})
    else:
        assert (read.parity is None, read.signed_by is None) == (version == 1,) * 2
        if version < 3:
            assert {verdict.robustness_upper for mode in read.modes for verdict in mode.verdicts} <= {None}
            assert all(mode.reason is None for mode in read.modes)
        assert read.passes == []
        assert read.energy is None or read.energy.rails == {}
        assert read.memory is None or read.memory.pss_bytes is None


@pytest.mark.parametrize("version", [2, 3, 4])
def test_both_sides_accept_the_golden_signature_and_no_other(version: int) -> None:
    path = GOLDEN / f"manifest-v{version}.json"
    manifest = from_json(Manifest, path.read_text(encoding="utf-8"))
    ((key, name),) = read_key(GOLDEN / "key.pub").items()
    assert signer(manifest, {key: name}) == "golden"
    assert manifest.signature is not None
    assert signature_holds(manifest, manifest.signature)
    done = on_the_device(
        "from toggle_runtime.records import Manifest, from_json, to_json\n"
        "from toggle_runtime.trust import signature_holds\n"
        "import dataclasses\n"
        "manifest = from_json(Manifest, open(sys.argv[1], encoding='utf-8').read())\n"
        "other = dataclasses.replace(manifest, probe_bytes=78)\n"
        "print(signature_holds(manifest, manifest.signature), signature_holds(other, manifest.signature))\n",
        str(path),
    )
    assert done.stdout.split() == ["True", "False"], done.stderr


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_must_be_refused_is_refused_on_both_sides(name: str) -> None:
    path = GOLDEN / "refused" / f"{name}.json"
    with pytest.raises(records.RecordError, match=re.escape(REFUSED[name])):
        from_json(kind_of(name), path.read_text(encoding="utf-8"))
    kind = kind_of(name).__name__
    done = on_the_device(
        f"from toggle_runtime.records import {kind}, RecordError, from_json\n"
        "try:\n"
        f"    from_json({kind}, open(sys.argv[1], encoding='utf-8').read())\n"
        "except RecordError as exc:\n"
        "    print(exc)\n",
        str(path),
    )
    assert REFUSED[name] in done.stdout, done.stderr


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("change", [lambda text: text + "\n", lambda text: json.dumps(json.loads(text))])
def test_a_manifest_that_is_not_canonical_is_refused(
    tmp_path: Path, change: Callable[[str], str], version: int
) -> None:
    text = (GOLDEN / f"manifest-v{version}.json").read_text(encoding="utf-8")
    (tmp_path / "manifest.json").write_text(change(text), encoding="utf-8")
    with pytest.raises(BundleError, match="expected canonical JSON"):
        read_bundle(tmp_path, trusted=read_key(GOLDEN / "key.pub"))


def test_no_refused_file_is_left_out() -> None:
    assert {path.stem for path in (GOLDEN / "refused").glob("*.json")} == set(REFUSED)


def bundled(folder: Path, content: bytes) -> Bundle:
    digest = hashlib.sha256(content).hexdigest()
    (folder / "blobs" / "sha256").mkdir(parents=True)
    (folder / "blobs" / "sha256" / digest).write_bytes(content)
    manifest = from_json(Manifest, (GOLDEN / "manifest-v4.json").read_text(encoding="utf-8"))
    files = {**manifest.files, PROBES: records.Blob(digest, len(content))}
    return Bundle("0" * 64, dataclasses.replace(manifest, files=files), folder)


def test_the_golden_probes_are_read(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "probes.json", tmp_path)
    probes = probes_of(bundled(tmp_path, (GOLDEN / "probes.json").read_bytes()))
    assert [(probe.steps, probe.answer_steps) for probe in probes] == [(3, (2,)), (2, ())]


@pytest.mark.parametrize(
    "probes",
    [
        "",
        "{}x",
        "[1]",
        '[{"tokens": [1, 2]}]',
        '[{"tokens": [1, 2], "prompt_tokens": 2, "answer_steps": []}]',
        '[{"tokens": [1, 2], "prompt_tokens": 0, "answer_steps": []}]',
        '[{"tokens": [1, 2, 3], "prompt_tokens": 1, "answer_steps": [2]}]',
        '[{"tokens": [1, 2, 3], "prompt_tokens": 1, "answer_steps": [-1]}]',
        '[{"tokens": 3, "prompt_tokens": 1, "answer_steps": []}]',
        "[" * 100_000,
    ],
)
def test_malformed_probes_are_refused(tmp_path: Path, probes: str) -> None:
    with pytest.raises(BundleError, match=r"probes/probes\.json"):
        probes_of(bundled(tmp_path, probes.encode()))


def test_the_limits_in_the_page_are_those_in_the_code() -> None:
    for bytes_, what in (
        (MAX_MANIFEST_BYTES, "manifest"),
        (MAX_PROBES_BYTES, "probes"),
        (MAX_RECORD_BYTES, "record"),
        (MAX_TRACES_BYTES, "traces"),
        (MAX_LINE_BYTES, "line"),
    ):
        assert f"| {what} | {bytes_ >> 20} MiB |" in FORMATS, what


def test_every_key_of_manifest_and_record_is_in_the_page() -> None:
    for name in ("manifest-v4", "record-v4"):
        for key in json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8")):
            assert f"`{key}`" in FORMATS, (name, key)
    for constant in (records.MANIFEST_VERSION, records.RECORD_VERSION):
        assert f"version {constant}" in FORMATS


def test_every_key_of_a_device_file_is_in_the_page_and_no_other() -> None:
    (table,) = re.findall(r"^## Device file$(.*?)^## ", FORMATS, re.MULTILINE | re.DOTALL)
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    keys = [key for row in rows for key in re.findall(r"`([a-z_]+)`", row[1])]
    assert sorted(keys) == sorted(field.name for field in dataclasses.fields(Device))
    (limits,) = (row[2] for row in rows if "`budget`" in row[1])
    assert set(re.findall(r"`([a-z_]+)`", limits)) == {field.name for field in dataclasses.fields(Budget)}
    for field in dataclasses.fields(Device):
        if isinstance(field.default, str) and field.default:
            (row,) = (row for row in rows if f"`{field.name}`" in row[1])
            assert f"`{field.default}`" in row[3], field.name
