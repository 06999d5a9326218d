"""HTTP routes through which the host's web page queries this node pack."""

import asyncio
import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

from aiohttp import web
from server import PromptServer

from ...perfusion_core import PerfusionError

NOT_PUBLIC = (".localhost", ".local", ".lan", ".internal", ".home.arpa")
"""Endings of names that no public name server resolves."""
REFUSED = (
    "Concepts are sent only to a page opened through localhost, an IP address, a name without a dot, or https; open ComfyUI in one "
    "of these ways."
)


def own_name(host: str) -> bool:
    """Return whether a Host header names a server in a way that a stranger's web site cannot: by address, or by a local name."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        if "." not in name or name.endswith(NOT_PUBLIC):
            return bool(name)
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def may_have(request: web.Request) -> bool:
    """Return whether a request cannot come from a stranger's web site whose name was made to point here (DNS rebinding).

    Newer hosts compare a page's name with the name that it requested, but in this attack both are the stranger's. Browsers send
    Sec-Fetch-Site, which no page can set, only over https and to localhost: over plain http it is missing, and over https the
    server's certificate would have to be for the stranger's name. So tunnels and proxies with https are accepted.
    """
    site = request.headers.get("Sec-Fetch-Site", "")
    return site != "cross-site" and (request.secure or bool(site) or own_name(request.headers.get("Host", "")))


def serve(address: str, content_of: Callable[[str], bytes], content_type: str = "application/octet-stream", kept: int = 0) -> None:
    """Answer GET `address`?name=… with the bytes of the named item, or with status 400 (403) and {"error": message}.

    Args:
        address: path of the route, such as /perfusion/file.
        content_of: returns the bytes for a name; raises PerfusionError if there are none.
        content_type: what the bytes are.
        kept: seconds for which the page may cache an answer.
    """

    async def answer(request: web.Request) -> web.Response:
        if not may_have(request):
            return web.json_response({"error": REFUSED}, status=403)
        try:
            content = await asyncio.to_thread(content_of, request.query.get("name", ""))
        except PerfusionError as error:
            return web.json_response({"error": str(error)}, status=400)
        headers = {"X-Content-Type-Options": "nosniff"} | ({"Cache-Control": f"private, max-age={kept}"} if kept else {})
        return web.Response(body=content, content_type=content_type, headers=headers)

    PromptServer.instance.routes.get(address)(answer)
