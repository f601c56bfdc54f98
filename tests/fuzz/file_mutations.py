"""Ways in which files get damaged, or are changed on purpose."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Random = np.random.Generator

HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, 10**5, 3 * 10**7, 10**9, 2**63, 10**30),
    *(
        "",
        "0",
        "nan",
        "../../etc/passwd",
        "pyro_contrastive:Poisson",
        "os:system",
        "\x00",
        "é" * 50,
    ),
    *([], [None], [1, 2, 3], {}, {"class": "x"}, {"a": {"b": []}}, float("nan"), float("inf")),
]


def damage_bytes(content: bytes, rng: Random) -> bytes:
    """Flip bits, overwrite, cut, insert, repeat or exchange pieces of some bytes."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, max(len(data), 1)))
        size = int(rng.choice([1, 2, 4, 8, 64]))
        match rng.integers(0, 7):
            case 0 if data:
                data[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                data[at : at + size] = rng.bytes(min(size, len(data) - at))
            case 2:
                del data[at:]
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = rng.bytes(size)
            case 5:
                data[at:at] = data[at : at + size]
            case _:
                other = int(rng.integers(0, max(len(data), 1)))
                size = min(size, len(data) - max(at, other))
                one, two = bytes(data[at : at + size]), bytes(data[other : other + size])
                data[at : at + size], data[other : other + size] = two, one
    return bytes(data)


def places(value: Any) -> list[tuple[Any, Any]]:
    """All containers of a JSON value with each of their keys."""
    found: list[tuple[Any, Any]] = []
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], dict | list):
            found += places(value[key])
    return found


def change_json(value: Any, rng: Random) -> None:
    """Change a JSON value in place: another value, no value, another order, another number."""
    for _ in range(int(rng.integers(1, 3))):
        found = places(value)
        if not found:
            return
        holder, key = found[int(rng.integers(0, len(found)))]
        old = holder[key]
        match rng.integers(0, 7):
            case 0 | 1:
                holder[key] = HOSTILE[int(rng.integers(0, len(HOSTILE)))]
            case 2:
                del holder[key]
            case 3 if isinstance(old, list):
                old.reverse()
            case 3 if isinstance(old, int | float):
                holder[key] = old * int(rng.choice([-1, 2, 10**4, 10**8]))
            case 4 if isinstance(old, list):
                old.extend(old[:1] * int(rng.choice([1, 100])))
            case 4 if isinstance(old, int | float):
                holder[key] = old + int(rng.choice([-1, 1]))
            case 5 if isinstance(old, str):
                holder[key] = old[::-1]
            case _:
                other, its = found[int(rng.integers(0, len(found)))]
                if its in other if isinstance(other, dict) else its < len(other):
                    holder[key] = json.loads(json.dumps(other[its]))


def change_header(content: bytes, rng: Random) -> bytes:
    """Change the JSON in front of a safetensors file, so that its length is right again."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change_json(header, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def change_json_file(path: Path, rng: Random) -> None:
    """Change a file of JSON."""
    value = json.loads(path.read_text())
    change_json(value, rng)
    path.write_text(json.dumps(value))


def change_record(path: Path, rng: Random) -> None:
    """Damage one record of a zip file, and write it with the sum that fits."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    names = sorted(records)
    pickles = [name for name in names if name.endswith("data.pkl")]
    name = str(rng.choice(pickles if rng.random() < 0.7 else names))
    records[name] = damage_bytes(records[name], rng)
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in records.items():
            archive.writestr(each, content)
