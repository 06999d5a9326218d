"""A real ComfyUI server in its own process, and the calls that the demo and the tests make to it."""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.setup.bootstrap import Setup
from scripts.setup.environment import clean_environment
from scripts.setup.steps import SetupError

HOST = "127.0.0.1"
LOG_LINES_IN_ERRORS = 15
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for a local address


class ServerError(SetupError):
    """The server did not start, died, or did not answer as expected."""


class GraphError(Exception):
    """The server rejected a graph, or one of its nodes failed.

    Attributes:
        messages: Texts of the exceptions or validation errors.
        node_class: Class of the node that caused the error, empty if there is none.
        node_id: Id of that node, empty if there is none.
        interrupted: Whether the graph was interrupted rather than failed.
    """

    def __init__(self, messages: list[str], node_class: str = "", node_id: str = "", interrupted: bool = False) -> None:
        """Store the parts and join them into a one-line message."""
        self.messages, self.node_class, self.node_id, self.interrupted = messages, node_class, node_id, interrupted
        super().__init__(": ".join(part for part in (node_class, "; ".join(messages)) if part))


class Server:
    """A ComfyUI server process; as a context manager it starts on entry and stops on exit."""

    popen: Callable[..., Any] = staticmethod(subprocess.Popen)
    """Starts a process."""

    def __init__(
        self,
        setup: Setup,
        port: int | None = None,
        base: Path | None = None,
        arguments: Sequence[str] = (),
        start_timeout: float = 300,
        threads: int | None = None,
        log_name: str = "server.log",
    ) -> None:
        """Describe a server without starting it.

        Args:
            setup: The locations of ComfyUI and its interpreter.
            port: The port; None or 0 picks a free one.
            base: The base directory, if not the set-up's.
            arguments: Additional arguments to main.py.
            start_timeout: Seconds within which the server must answer after it is started.
            threads: Limit on the number of compute threads, for several servers in parallel.
            log_name: Name of the log file in the base directory; servers that share a base directory need different ones.
        """
        self.setup = setup
        self.base = base or setup.base
        self.port = port or _free_port()
        self.arguments = list(arguments)
        self.start_timeout = start_timeout
        self.environment = clean_environment() | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        self.log_file = self.base / log_name
        self.process: Any = None

    @property
    def address(self) -> str:
        """The server's URL."""
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> Server:
        """Start the server and wait until it answers."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        _check_port_free(self.port)
        command = [str(self.setup.python), "main.py", "--port", str(self.port), "--base-directory", str(self.base)]
        command += ["--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:", *self.arguments]
        if not _has_accelerator(self.setup.python) and "--cpu" not in command:
            command.append("--cpu")
        with self.log_file.open("wb") as log:
            self.process = self.popen(
                command,
                cwd=self.setup.comfyui,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Terminate the server; kill it if it has not ended after 15 seconds."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(15)
            self.process = None
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill the server, without a chance to clean up."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        self.process = None

    def log(self) -> str:
        """Return everything that the server has printed since it was started."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> Any:
        """GET a path; return the parsed content if it is JSON, otherwise bytes."""
        return self._request(path)

    def post(self, path: str, body: dict) -> Any:
        """POST a JSON body; return the answer as `get` does."""
        return self._request(path, body)

    def object_info(self) -> dict[str, dict]:
        """Return the server's description of each node class: inputs, outputs, display name."""
        return self.get("/object_info")

    def run(self, graph: dict, timeout: float = 3600) -> dict:
        """Run a graph in API form to its end; return its history entry."""
        return self.wait(self.queue(graph), timeout)

    def queue(self, graph: dict) -> str:
        """Queue a graph and return its id. A graph with any invalid part is rejected as a whole, with GraphError."""
        try:
            answer = self.post("/prompt", {"prompt": graph})
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if error.code != 400:
                raise ServerError(f"expected the server to take the graph, but it answered {error.code}: {text}") from None
            raise _refusal(json.loads(text)) from None
        if answer.get("node_errors"):  # the server would run the valid outputs and drop the rest
            self.post("/queue", {"delete": [answer["prompt_id"]]})
            self.interrupt(answer["prompt_id"])
            raise _refusal(answer)
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 3600) -> dict:
        """Wait for a queued graph; return its history entry, or raise GraphError."""
        end, pause = time.monotonic() + timeout, 0.01
        while time.monotonic() < end:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry.get("status"):
                _raise_if_failed(entry)
                return entry
            time.sleep(pause)
            pause = min(0.1, 1.5 * pause)
        raise ServerError(f"expected the graph to finish in {timeout:.0f} s, but it did not; see {self.log_file}.")

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Interrupt the running graph; with a `prompt_id`, only if that graph is running."""
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def free(self) -> None:
        """Make the server unload its models and drop cached results, and wait until it has."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        # A worker about to go to sleep misses the request; running a graph wakes it, and it handles requests after a graph.
        number = {"class_type": "PrimitiveInt", "inputs": {"value": 0}}
        self.run({"1": number, "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}})

    def outputs(self, history: dict, node_id: str | int | None = None, kind: str = "output") -> list[Path]:
        """Return the images that a finished graph saved (with `kind` "temp": previewed), of all its nodes or of one."""
        found = []
        for node, result in history["outputs"].items():
            if node_id is None or node == str(node_id):
                found += [image for image in result.get("images", []) if image["type"] == kind]
        return [self.base / image["type"] / image["subfolder"] / image["filename"] for image in found]

    def _request(self, path: str, body: dict | None = None, timeout: float = 60) -> Any:
        """Send one HTTP request; if the server has died, the error quotes the end of its log."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with _OPENER.open(request, timeout=timeout) as answer:
                content = answer.read()
                is_json = answer.headers.get_content_type() == "application/json"
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            self._raise_if_dead()
            raise ServerError(f"expected an answer from {self.address}{path}, but: {error}; see {self.log_file}.") from None
        return json.loads(content) if is_json else content

    def _wait_until_ready(self) -> None:
        """Wait until the server answers, it dies, or time is up."""
        end = time.monotonic() + self.start_timeout
        while time.monotonic() < end:
            self._raise_if_dead()
            try:
                self._request("/system_stats", timeout=5)
                return
            except ServerError:
                self._raise_if_dead()
                time.sleep(0.2)
        raise ServerError(f"expected ComfyUI to answer within {self.start_timeout:.0f} s, but it did not; see {self.log_file}.")

    def _raise_if_dead(self) -> None:
        """Fail with the log's last lines if the process has ended."""
        if self.process is None or self.process.poll() is None:
            return
        code, last = self.process.returncode, "\n".join(self.log().splitlines()[-LOG_LINES_IN_ERRORS:])
        raise ServerError(f"expected ComfyUI to run, but it ended with exit code {code}; {self.log_file} ends with:\n{last}")


def _free_port() -> int:
    """Return a port that is currently free."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _check_port_free(port: int) -> None:
    """Raise ServerError if another program listens on this port."""
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise ServerError(
                f"expected port {port} to be free, but another program uses it; close that program, or choose another port "
                "with --port (0 takes a free one)."
            )


@functools.cache
def _has_accelerator(python: Path) -> bool:
    """Whether this interpreter's torch finds an accelerator (CUDA, MPS or XPU)."""
    if str(python) == sys.executable and (t := sys.modules.get("torch")):  # it is imported here already
        return bool(t.cuda.is_available() or t.backends.mps.is_available() or t.xpu.is_available())
    code = "import torch as t; print(t.cuda.is_available() or t.backends.mps.is_available() or t.xpu.is_available())"
    answer = subprocess.run([str(python), "-c", code], env=clean_environment(), capture_output=True, text=True)
    if answer.returncode:
        last = answer.stderr.strip().splitlines()[-1:]
        raise ServerError(f"expected torch in {python}, but it said: {' '.join(last)}; install ComfyUI's requirements there.")
    return answer.stdout.strip() == "True"


def _refusal(answer: dict) -> GraphError:
    """Build the error for a graph that failed validation."""
    for node_id, blamed in (answer.get("node_errors") or {}).items():
        messages = [": ".join(filter(None, (error["message"], error.get("details")))) for error in blamed["errors"]]
        return GraphError(messages, blamed["class_type"], node_id)
    error = answer.get("error") or {}
    if isinstance(error, str):
        return GraphError([error])
    node = error.get("extra_info") or {}
    message = ": ".join(filter(None, (error.get("message", "the graph was refused"), error.get("details"))))
    return GraphError([message], node.get("class_type") or "", str(node.get("node_id") or ""))


def _raise_if_failed(entry: dict) -> None:
    """Raise GraphError if a history entry reports a failure or an interruption."""
    for name, told in entry["status"].get("messages", []):
        if name == "execution_error":
            raise GraphError([told["exception_message"].strip()], told["node_type"], str(told["node_id"]))
        if name == "execution_interrupted":
            raise GraphError(["interrupted"], told.get("node_type") or "", str(told.get("node_id") or ""), interrupted=True)
    if entry["status"].get("status_str") == "error":
        raise GraphError(["the graph failed without a message"])
