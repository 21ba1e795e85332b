"""A server over a small run with random weights, asked within the process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from coretrain.checkpoint.interchange import interchange_of, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.contract.parameters import initial_parameters
from coretrain.serving.app import Limits, Server
from coretrain.serving.models import open_models
from coretrain.tokenizers.registry import bytes_tokenizer
from tests.support.configs import small_config

TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }};"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def write_run(folder: Path, template: str | None = TEMPLATE, **more: object) -> Path:
    """A run's folder with random weights, of bytes, with a chat template."""
    config = small_config(folder, **({"model__vocab": 257, "model__context": 96} | more))
    weights = {name: 5 * value for name, value in initial_parameters(config.model, 5).items()}
    place = interchange_of(folder, "update-00000000")
    save_interchange(place, config, {"parameters": weights}, Progress(), "import")
    (folder / "config.json").write_text(config.to_json())
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    bytes_tokenizer().save(folder)
    return folder


@contextlib.contextmanager
def served(run: Path, make_stack, adapters=(), key="", limits=None, rows=4, waiting=64) -> Iterator[Server]:
    """The endpoints over a run."""
    engine, models = open_models(run, adapters, make_stack, rows, None, waiting)
    with engine:
        yield Server(engine, models, limits or Limits(answer=16), key)


@contextlib.contextmanager
def listening(server: Server) -> Iterator[str]:
    """Its address, at a port of its own."""
    import threading
    import time

    import uvicorn

    from coretrain.serving.run import bound

    with bound("127.0.0.1", 0) as sock:
        config = uvicorn.Config(server.app, log_level="error", lifespan="off", timeout_graceful_shutdown=2, ws="none")
        serving = uvicorn.Server(config)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        while not serving.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        serving.should_exit = True
        thread.join(10)
