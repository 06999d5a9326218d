"""Follow a running graph until the server reports a given event, and set up a base directory whose server can be inspected."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import aiohttp

from scripts.harness.server import Server, ServerError
from scripts.setup import bootstrap

Moment = Callable[[dict], bool]
"""Whether a message from the server, {"type": …, "data": …}, reports the event; the type of a preview image is "preview"."""
FINISHED = ("execution_success", "execution_error", "execution_interrupted")


def base_with_spy(setup: bootstrap.Setup, name: str) -> Path:
    """Create a fresh base directory with the nodes of `spy.py`."""
    base = bootstrap.fresh_base(setup, name)
    shutil.copyfile(Path(__file__).with_name("spy.py"), base / "custom_nodes" / "spy.py")
    return base


def forget_finished(base: Path) -> None:
    """Delete the state kept of the last finished training; a new server would resume from its end and train nothing."""
    shutil.rmtree(base / "models" / "perfusion" / ".work" / "finished", ignore_errors=True)


def queued_until(server: Server, graph: dict, moment: Moment, timeout: float = 300) -> str:
    """Queue a graph, wait for the event, and return the graph's id.

    Raises:
        ServerError: The graph ended before the event, or the server closed the connection.
        asyncio.TimeoutError: The event did not come within `timeout` seconds.
    """
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
    """Return a predicate for the event that a node with `steps` steps has reached at least step `value`."""

    def come(told: dict) -> bool:
        data = told.get("data") or {}
        return told["type"] == "progress" and data["node"] == node and data["max"] == steps and data["value"] >= value

    return come
