"""What is known of each accelerator (accelerators.toml): peak, memory, links, price; and what `--on` asks for."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from coretrain.base.errors import UserError
from coretrain.base.parse import LARGEST_TOML, from_toml, read_bytes, shown
from coretrain.config.fields import Section
from coretrain.planning.prices import Price

TABLE = Path(__file__).with_name("accelerators.toml")
GIB = 2**30
MOST_DEVICES = 2**17
"""As many as the largest clusters have: every way to lay them out is looked at."""
OF_ALL = ("currency", "price_date", "price_kind")
"""Keys that may stand above the sections of a table, for all of them."""


class Accelerator(Section):
    """One row of accelerators.toml, which says what each figure means."""

    name: str = ""
    tflops: float = Field(gt=0)
    tflops32: float = Field(gt=0)
    memory: float = Field(gt=0)
    bandwidth: float = Field(gt=0)
    link: float = Field(gt=0)
    network: float = Field(gt=0)
    host_link: float = Field(gt=0)
    host_memory: float = Field(gt=0)
    node: int = Field(ge=1)
    most: int | None = Field(None, ge=1)
    price: float = Field(ge=0)
    currency: str = Field("USD", pattern="^[A-Z]{3}$")
    price_date: Annotated[str, BeforeValidator(str)] = ""
    price_kind: str = ""
    words: tuple[str, ...] = Field(min_length=1)
    bfloat16: bool = True
    table: str = ""
    """Name of the file that it stands in."""

    @property
    def tpu(self) -> bool:
        """Whether it is a TPU, whose devices are sold in slices."""
        return self.words[0].startswith("TPU")


@dataclass(frozen=True)
class Machine:
    """So many devices of one kind; a TPU slice has a topology (`16x16`)."""

    accelerator: Accelerator
    devices: int
    topology: str | None = None

    def __str__(self) -> str:
        name = self.accelerator.name
        return f"{name}:{self.topology}" if self.topology else f"{name}x{self.devices}"

    @property
    def nodes(self) -> int:
        """Hosts that the devices fill."""
        return -(-self.devices // self.accelerator.node)

    @property
    def link(self) -> float:
        """Bytes/s of one device to all the others, one direction: the slowest part of a ring through them."""
        a = self.accelerator
        return 1e9 * (a.link if a.tpu or self.devices <= a.node else min(a.link, a.network))

    @property
    def memory(self) -> float:
        """Bytes of one device."""
        return self.accelerator.memory * GIB

    @property
    def flops(self) -> float:
        """Peak FLOP/s of all devices."""
        return self.devices * self.accelerator.tflops * 1e12

    @property
    def price(self) -> Price:
        """What the table says that an hour costs."""
        a = self.accelerator
        seen = f"as seen in {a.price_date}" if a.price_date else ""
        source = ", ".join(filter(None, (a.table, a.price_kind, seen)))
        return Price(a.price * self.devices, self.devices, a.currency, source)


@functools.cache
def accelerators(path: Path = TABLE) -> dict[str, Accelerator]:
    """The table by name. Raises `UserError`, which names the file and what is wrong in it."""
    try:
        raw = from_toml(read_bytes(path, LARGEST_TOML).decode())
    except OSError as error:
        raise UserError(
            "planning/accelerators-unreadable", f"--accelerators {path} can't be read: {error.strerror}"
        ) from None
    except ValueError as error:
        raise UserError("planning/toml-invalid", f"{path} is not valid TOML: {error}") from None
    try:
        of_all: dict[str, Any] = {key: raw.pop(key) for key in OF_ALL if key in raw}
        found = {
            name.lower(): Accelerator(**{**of_all, **row, "name": name.lower(), "table": path.name})
            for name, row in raw.items()
        }
    except TypeError:
        raise UserError(
            "planning/accelerator-not-a-section", f"{path}: every entry is a section, as in [my-gpu]; see {TABLE.name}"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(
            "planning/accelerator-field-wrong", f"{path}: {field} of {error.title} is wrong: {first['msg'].lower()}"
        ) from None
    if not found:
        raise UserError(
            "planning/accelerators-empty",
            f"{path} has no accelerator: write a section for each, as in {TABLE.name}",
        )
    return found


def machine(text: str, path: Path = TABLE) -> Machine:
    """What `--on` says: `h100` (one), `4090x8` (eight), `v5e:16x16` (a slice by its topology).

    Raises `UserError` for a name that the table doesn't have, with the nearest that it has, or a count that can't be.
    """
    table = accelerators(path)
    fits = re.fullmatch(
        r"(?P<name>.+?)(?P<rest>x(?P<count>[0-9]+)|:(?P<topology>[0-9]+(?:x[0-9]+)*))?", text.strip().lower()
    )
    name, rest = (fits["name"], fits["rest"] or "") if fits else (text, "")
    if not fits or name not in table:
        # rtx4090 is no `rt` of which there are 4090
        raise _unknown(text, [(name, rest), (text.strip().lower().partition(":")[0], "")], table)
    found, topology = table[name], fits["topology"]
    if topology and not found.tpu:
        raise UserError(
            "planning/topology-without-tpu",
            f"--on {text}: a topology is for TPU slices; write {name}x8 for eight devices",
        )
    sizes = (topology or fits["count"] or "1").split("x")
    devices = math.prod(MOST_DEVICES + 1 if len(size) > 9 else int(size) for size in sizes)
    if devices > MOST_DEVICES:
        raise UserError(
            "planning/too-many-devices",
            f"--on {shown(text)}: no machine of more than {MOST_DEVICES:,} devices is planned",
        )
    if devices < 1:
        raise UserError("planning/no-devices", f"--on {text}: there must be at least one device")
    if not found.tpu and devices > found.node and devices % found.node:
        whole = devices // found.node * found.node
        raise UserError(
            "planning/hosts-not-filled",
            f"--on {text}: hosts of {name} have {found.node} devices, and {devices} don't fill whole ones: take "
            f"{whole} or {whole + found.node} (--accelerators FILE takes hosts of another size)",
        )
    if found.most and devices > found.most:
        raise UserError(
            "planning/slice-too-large", f"--on {text}: the largest slice of {name} has {found.most} devices"
        )
    return Machine(found, devices, topology)


def _unknown(text: str, read_as: list[tuple[str, str]], table: Mapping[str, Accelerator]) -> UserError:
    """What to say of a name that the table doesn't have; it may be read as one of several names and what follows."""
    near: list[str] = []
    for name, rest in read_as:
        # of one kind: a100 of a100-80 and a100-40, v5 of v5e and v5p, but h10 not of h100
        kinds = [other for other in table if name[-1:].isdigit() and re.match(rf"{re.escape(name)}(?!\d)", other)]
        if len(kinds) > 1:
            return UserError(
                "planning/accelerator-ambiguous",
                f"--on {text}: {name} may be {' or '.join(kinds)}: write one of them, as {kinds[0]}{rest}",
            )
        # as a maker or a framework calls it: "NVIDIA A100-SXM4-40GB"
        called = named(name, table)
        near = kinds or ([called.name] if called else difflib.get_close_matches(name, table, 1))
        if near:
            break
    hint = f"did you mean {near[0]}{rest}?" if near else f"there are {', '.join(table)}"
    return UserError(
        "planning/unknown-accelerator",
        f"--on {text}: no such accelerator is known: {hint} (--accelerators FILE takes others)",
    )


def named(device: str, table: Mapping[str, Accelerator] | None = None) -> Accelerator | None:
    """The accelerator that a framework calls `device`: the longest word that fits; None where none does.

    It is looked for in `table`, or in accelerators.toml where there is none.
    """
    # A laptop's chip and a slice of a chip have the name of a faster one.
    if re.search(r"\b(laptop|max-q|mig)\b", device, re.IGNORECASE):
        return None
    best: tuple[int, Accelerator] | None = None
    for accelerator in (accelerators() if table is None else table).values():
        for word in accelerator.words:
            fits = re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", device, re.IGNORECASE)
            if fits and (best is None or len(word) > best[0]):
                best = (len(word), accelerator)
    return best[1] if best else None
