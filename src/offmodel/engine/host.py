"""Servers of models: the command that starts vLLM, and a server of one's own for as long as something is sampled."""

from __future__ import annotations

import gc
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import torch

from offmodel.engine import leash
from offmodel.engine.canary import check_served, expected
from offmodel.engine.served import Served
from offmodel.errors import ModelError
from offmodel.spec.endpoint import Endpoint
from offmodel.spec.hashing import canonical_json
from offmodel.spec.models import Server, current

_HOST = "127.0.0.1"
_LOOK_AGAIN = 0.2  # seconds between two looks at a server that is not up yet
# Nothing of the folder is looked up elsewhere, and nobody is told of it.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank (``MaxLoRARanks`` in its ``vllm/config/lora.py``, read at 0.26 and 0.27)."""


def serve_command(
    folder: Path,
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_model_len: int | None = None,
    adapter: Path | None = None,
    dtype: str | None = None,
) -> str:
    """The shell command by which vLLM serves a model, without sampling defaults of its folder.

    Args:
        folder: The model, in Hugging Face layout.
        name: Under which it, or the adapter on it, is asked for.
        host: Where vLLM listens.
        port: On which port.
        max_model_len: Tokens of prompt and answer together, at most; None for all that the model allows.
        adapter: A LoRA adapter on the model, in PEFT's layout; it is what ``name`` then stands for.
        dtype: Precision of weights and sums; None for that of the model's files.

    Raises:
        ModelError: The adapter's rank is beyond what vLLM can serve.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    length = max_model_len or getattr(config.get_text_config(), "max_position_embeddings", None)
    words = ["vllm", "serve", str(folder), "--served-model-name", f"{name}-base" if adapter else name, "--host", host, "--port", str(port)]
    words += ["--dtype", dtype or str(config.dtype or "bfloat16").removeprefix("torch.")]
    words += ["--max-model-len", str(length)] if length else []
    words += ["--generation-config", "vllm"]  # its own defaults, not those of the folder's generation_config.json
    if adapter is not None:
        words += ["--enable-lora", "--max-lora-rank", str(_rank(adapter)), "--lora-modules", f"{name}={adapter}"]
    return shlex.join(words)


@contextmanager
def hosted(folder: Path, server: Server, kept: Path | None) -> Iterator[Served]:
    """Serve the model in a folder for as long as the block lasts; the canary has then proved that it is what is served.

    Args:
        folder: The model, in Hugging Face layout.
        server: How.
        kept: File of the answers that are kept.

    Raises:
        ModelError: The command is not there, ends, or is not up in time; or the server has another model or samples otherwise.
    """
    identity = canonical_json([str(folder), current().as_params()])
    expected(folder, identity)  # before the server takes the GPU's memory
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    port = _free_port()
    endpoint = Endpoint(
        url=f"http://{_HOST}:{port}/v1", model=server.model.replace("{folder}", str(folder)), concurrency=server.concurrency,
        timeout=server.timeout, attempts=server.attempts,
    )  # fmt: skip
    with _running(_words(server.command, folder, port)) as process:
        _wait(process, server, port)
        served = Served(endpoint, identity, kept, writer=folder)
        check_served(served, folder, tolerance=server.tolerance)
        yield served


def _words(command: str, folder: Path, port: int) -> list[str]:
    words = []
    for word in shlex.split(command):
        if word == "{vllm}":
            words += shlex.split(serve_command(folder, str(folder), host=_HOST, port=port, dtype=current().dtype))
        else:
            words.append(word.replace("{folder}", str(folder)).replace("{port}", str(port)))
    return words


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((_HOST, 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def _running(words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command that ends with the block, or with this process, however that ends; its output goes where ours goes."""
    beside = str(Path(sys.executable).parent)  # what is installed with offmodel is found without its environment being active
    program = shutil.which(words[0], path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if program is None:
        raise ModelError(f"models.server: there is no command {words[0]!r} on this machine; install it, or give another 'command'")
    process = subprocess.Popen(
        [sys.executable, "-P", str(leash.__file__), program, *words[1:]],
        stdin=subprocess.PIPE,
        env={**os.environ, **_ENVIRONMENT},
        start_new_session=True,  # whoever kills our process group must not kill what looks after the server
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()


def _wait(process: subprocess.Popen[bytes], server: Server, port: int) -> None:
    until = time.monotonic() + server.start
    with httpx2.Client(trust_env=False, timeout=10) as http:
        while time.monotonic() < until:
            if (code := process.poll()) is not None:
                raise ModelError(
                    f"models.server: {server.command!r} ended with exit code {code} before it served; its words are in the log"
                )
            try:
                if http.get(f"http://{_HOST}:{port}/health").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(_LOOK_AGAIN)
    raise ModelError(
        f"models.server: {server.command!r} was not up within {server.start:g} s; its words are in the log; 'start' gives it more"
    )


def _rank(adapter: Path) -> int:
    """The least rank limit of vLLM that lets an adapter in; single layers may have another rank than the rest."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    needed = max(config["r"], *(config.get("rank_pattern") or {"": 0}).values())
    fitting = [rank for rank in _RANKS if rank >= needed]
    if not fitting:
        raise ModelError(f"{adapter}: its rank is {needed}, and vLLM serves adapters up to {_RANKS[-1]}; merge it instead")
    return fitting[0]
