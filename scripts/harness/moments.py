"""A graph on its way, followed until something is told of it; and a base directory whose server can be looked into."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import aiohttp

from scripts.harness.server import Server, ServerError
from scripts.setup import bootstrap

Moment = Callable[[dict], bool]
"""Whether a message of the server's, {"type": …, "data": …}, tells of the moment; a preview's type is "preview"."""
FINISHED = ("execution_success", "execution_error", "execution_interrupted")


def base_with_spy(setup: bootstrap.Setup, name: str) -> Path:
    """A fresh base directory with the nodes of `spy.py`."""
    base = bootstrap.fresh_base(setup, name)
    shutil.copyfile(Path(__file__).with_name("spy.py"), base / "custom_nodes" / "spy.py")
    return base


def forget_finished(base: Path) -> None:
    """Delete what is kept of the training that ended last: a server that starts would go on from its end, and teach nothing."""
    shutil.rmtree(base / "models" / "perfusion" / ".work" / "finished", ignore_errors=True)


def queued_until(server: Server, graph: dict, moment: Moment, timeout: float = 300) -> str:
    """Queue a graph and wait for a moment of it; the graph's id. ServerError where it ends before."""
    return asyncio.run(asyncio.wait_for(_follow(server, graph, moment), timeout))


async def _follow(server: Server, graph: dict, moment: Moment) -> str:
    address = f"{server.address}/ws?clientId=follower"
    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
        body = {"prompt": graph, "client_id": "follower", "extra_data": {"preview_method": "latent2rgb"}}
        prompt = server.post("/prompt", body)["prompt_id"]
        async for message in socket:
            told = message.json() if message.type == aiohttp.WSMsgType.TEXT else {"type": "preview", "data": {}}
            if moment(told):
                return prompt
            if told["type"] in FINISHED and told["data"].get("prompt_id") == prompt:
                raise ServerError(f"expected a moment of the graph, but it ended before: {told['type']}.")
    raise ServerError("expected the server to tell of the graph, but it hung up.")


def progress(node: str, steps: int, value: int) -> Moment:
    """A node has come so far on a way of `steps`."""

    def come(told: dict) -> bool:
        data = told.get("data") or {}
        return told["type"] == "progress" and data["node"] == node and data["max"] == steps and data["value"] >= value

    return come
