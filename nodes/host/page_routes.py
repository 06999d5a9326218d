"""HTTP routes through which the host's web page queries this node pack."""

import asyncio
from collections.abc import Callable

from aiohttp import web
from server import PromptServer

from ...perfusion_core import PerfusionError


def serve(address: str, content_of: Callable[[str], bytes]) -> None:
    """Answer GET `address`?name=… with the bytes of the named item, or with status 400 and {"error": message}.

    Args:
        address: path of the route, such as /perfusion/file.
        content_of: returns the bytes for a name; raises PerfusionError if there are none for it.
    """

    async def answer(request: web.Request) -> web.Response:
        try:
            content = await asyncio.to_thread(content_of, request.query.get("name", ""))
        except PerfusionError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.Response(body=content, content_type="application/octet-stream")

    PromptServer.instance.routes.get(address)(answer)
