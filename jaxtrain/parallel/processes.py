"""The processes of a run in JAX, and how they share its work (twin: torchtrain/parallel/processes.py).

`Devices` and `choose_devices` have no twin: in JAX one process may hold many devices. What processes tell each other
goes over JAX's coordination service, not over a collective of the devices.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from coretrain.base.errors import UserError
from coretrain.base.numbers import told_number
from coretrain.config.run import RunConfig
from coretrain.processes.launch import launched_as
from coretrain.processes.layout import Layout, layout_of
from coretrain.processes.rendezvous import meet
from coretrain.processes.supported import check_combination
from coretrain.processes.world import PeerError, World


def join(config: RunConfig) -> World:
    """The world of this process: the hosts that run with it, or itself alone.

    They are found in `parallel.coordinator`, `hosts` and `host`, in what torchrun or `--spawn` told this process, or by
    the cluster (a TPU slice, Slurm, Open MPI, Kubernetes), unless `parallel.hosts` is 1.
    Raises `UserError` where the others don't come within `parallel.timeout` seconds.
    """
    check_combination(config, "jax")
    p = config.parallel
    address, count, rank = p.coordinator, p.hosts, p.host
    if address is None and "RANK" in os.environ and told_number("WORLD_SIZE", 1) > 1:
        rank, count = launched_as()
        # torchrun itself listens on the port that it tells
        port = told_number("MASTER_PORT", most=2**16 - 2) + ("TORCHELASTIC_RUN_ID" in os.environ)
        address = f"{os.environ.get('MASTER_ADDR', '127.0.0.1')}:{port}"
    alone = address is None and (count == 1 or (count is None and _processes_of_cluster() == 1))
    if alone and not rank:
        return World()
    if address is None and not alone:
        address, count, rank = _told_by_cluster(count, rank, p.timeout)
    if address is None or count is None or rank is None:
        raise UserError(
            "jax/cluster-fields-incomplete",
            "of parallel.coordinator, parallel.hosts and parallel.host some are given and some are not: give all three",
        )
    local = {"local_device_ids": [told_number("LOCAL_RANK")]} if "LOCAL_RANK" in os.environ else {}
    meet(address, count, rank, p.timeout, os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"))
    try:
        jax.distributed.initialize(
            address,
            count,
            rank,
            initialization_timeout=p.timeout,
            # its client ends the process in C++: coretrain.processes.heartbeat names who is silent before that
            heartbeat_timeout_seconds=2 * max(p.timeout, p.silence),
            **local,  # type: ignore[arg-type]  # mypy holds the one key's list against every argument's type
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            "jax/rank-not-joined",
            f"rank {rank} of {count} could not join the others at {address} ({str(error).splitlines()[0]}): "
            "start all of them, with one coordinator",
        ) from None
    return Processes(p.timeout)


def _processes_of_cluster() -> int:
    """How many processes the cluster that this one runs in has started; 1 outside of any."""
    from jax._src.clusters import ClusterEnv  # jax has no public name for what `initialize` itself looks at

    try:
        for cluster in ClusterEnv._cluster_types:
            if not cluster.opt_in_only_method and cluster.is_env_present():
                return int(cluster.get_process_count())
    except (KeyError, ValueError) as error:  # of its variables one is missing, or is no number
        raise UserError(
            "jax/cluster-environment-wrong",
            f"the environment of a cluster can't be read ({type(error).__name__}: {str(error).splitlines()[0]}): start "
            "the run by the cluster's own launcher, or alone with parallel.hosts = 1",
        ) from None
    return 1


def _told_by_cluster(count: int | None, rank: int | None, timeout: int) -> tuple[str | None, int | None, int | None]:
    """Where its processes meet, how many they are and which this one is, as `initialize` itself would find them."""
    from jax._src.clusters import ClusterEnv

    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(None, count, rank, None, None, timeout)
    except RuntimeError as error:  # a TPU slice's first host has no address yet
        raise UserError(
            "jax/cluster-start-timeout",
            f"{error} (parallel.timeout = {timeout} s): start all hosts of the cluster",
        ) from None
    return found[:3]


class Processes(World):
    """The processes that jax.distributed joined; what they tell each other goes through its key-value store.

    Not through a collective of the devices: that would hang where a process is missing, and couldn't name it.
    """

    def __init__(self, timeout: int) -> None:
        # jax has no public name for this client, which orbax too takes from here
        from jax._src.distributed import global_state

        self._client: Any = global_state.client
        self._timeout, self._calls = timeout, 0
        self.rank, self.size = jax.process_index(), jax.process_count()

    def gather(self, text: str) -> list[str]:
        """Each process's text, by rank, on all of them; `UserError` naming who kept the others waiting too long."""
        key = f"twintrain/{self._calls}"
        try:
            self._client.key_value_set(f"{key}/{self.rank:06d}", f">{text}")
            self._client.wait_at_barrier(key.replace("/", "-"), self._timeout * 1000)
            found = dict(self._client.key_value_dir_get(f"{key}/"))
            if self._calls >= 1:  # all have read the call before this one
                self._client.key_value_delete(f"twintrain/{self._calls - 1}/{self.rank:06d}")
        except Exception as error:  # a jax.errors.JaxRuntimeError, whose text alone says which
            raise PeerError("jax/process-gone", self._late(key, error)) from None
        self._calls += 1
        return [found[name][1:] for name in sorted(found)]

    def shutdown(self) -> None:
        """Part from the others, where all are done: the first keeps what all hold on to."""
        jax.distributed.shutdown()

    def _late(self, key: str, error: Exception) -> str:
        try:
            here = {int(name.rpartition("/")[2]) for name, _ in self._client.key_value_dir_get(f"{key}/")}
        except Exception:
            here = set(range(1, self.size))  # rank 0 is where all of this is kept
        late = sorted(set(range(self.size)) - here)
        who = f"rank {', '.join(map(str, late))}" if late else "another process"
        reason = re.sub(r"\s+", " ", str(error))[:200]
        return f"{who} kept rank {self.rank} waiting or has ended (parallel.timeout = {self._timeout} s): {reason}"


@dataclass(frozen=True)
class Devices:
    """The devices that a run takes, how they share its work, and why these."""

    devices: tuple[jax.Device, ...]
    layout: Layout
    reason: str


def choose_devices(config: RunConfig, devices: Sequence[jax.Device]) -> Devices:
    """The devices that share the run, of those present on all hosts.

    As `parallel` says; where it says nothing, all of them as copies of the model if they divide a micro-batch's rows,
    else one. `UserError` where the axes asked for need more devices than there are, or don't fit the model.
    """
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise UserError(
            "jax/processes-not-met",
            f"JAX sees {jax.process_count()} processes that have not met: "
            "give parallel.coordinator, parallel.hosts and parallel.host, or start one process alone",
        )
    p, present = config.parallel, len(devices)
    asked = p.fsdp * p.tensor * p.context * p.pipeline
    if p.data is None and asked == 1:
        if present == 1:
            return Devices(tuple(devices), Layout(), "the only one")
        if config.micro_batch % present == 0:
            return Devices(tuple(devices), layout_of(config, present), f"parallel is unset: all {present} share rows")
        if len({device.process_index for device in devices}) == 1:
            return Devices(
                (devices[0],),
                Layout(),
                f"{present} are here, but they don't divide a micro-batch's {config.micro_batch} rows",
            )
    wanted = (p.data or 1) * asked
    if p.data is not None and wanted < present and len({device.process_index for device in devices}) == 1:
        return Devices(tuple(devices[:wanted]), layout_of(config, wanted), f"asked for by parallel, of {present} here")
    return Devices(tuple(devices), layout_of(config, present), "asked for by parallel")
