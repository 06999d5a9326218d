"""A real ComfyUI server in a process of its own, and the few calls that the demo and the tests make to it."""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.setup.bootstrap import Setup
from scripts.setup.environment import clean_environment
from scripts.setup.steps import SetupError

HOST = "127.0.0.1"
LOG_LINES_IN_ERRORS = 15
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no business on this machine's own address


class ServerError(SetupError):
    """The server did not start, died, or did not answer."""


class GraphError(Exception):
    """The server refused a graph, or a node of it failed.

    `node_class` and `node_id` name the node, where one is to blame; `messages` are its exceptions' or validation errors'
    texts; `interrupted` tells a stopped graph from a failed one.
    """

    def __init__(self, messages: list[str], node_class: str = "", node_id: str = "", interrupted: bool = False) -> None:
        """Keep the parts and put them into one line."""
        self.messages, self.node_class, self.node_id, self.interrupted = messages, node_class, node_id, interrupted
        super().__init__(": ".join(part for part in (node_class, "; ".join(messages)) if part))


class Server:
    """Starts ComfyUI when entered, stops it when left."""

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
        """Port None or 0 takes a free one; `base` is the base directory, if not the set-up's; `arguments` go to main.py.

        `threads` limits those that compute, for servers side by side; of one base directory, these need logs of their own.
        """
        self.setup = setup
        self.base = base or setup.base
        self.port = port or _free_port()
        self.arguments = list(arguments)
        self.start_timeout = start_timeout
        self.environment = clean_environment() | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        self.log_file = self.base / log_name
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where a browser finds the server."""
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
            self.process = subprocess.Popen(
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
        """Stop the server, gently first."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(15)
            self.process = None
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the server as nothing can be prepared for."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        self.process = None

    def log(self) -> str:
        """All that the server has printed since it was started."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> Any:
        """GET a path: parsed, if it is JSON, else as bytes."""
        return self._request(path)

    def post(self, path: str, body: dict) -> Any:
        """POST a JSON body."""
        return self._request(path, body)

    def object_info(self) -> dict[str, dict]:
        """What the server says of each node class: inputs, outputs, display name."""
        return self.get("/object_info")

    def run(self, graph: dict, timeout: float = 3600) -> dict:
        """Run a graph in API form to its end; return its history entry."""
        return self.wait(self.queue(graph), timeout)

    def queue(self, graph: dict) -> str:
        """Queue a graph; return its id. A graph with any invalid part is refused whole."""
        try:
            answer = self.post("/prompt", {"prompt": graph})
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if error.code != 400:
                raise ServerError(f"expected the server to take the graph, but it answered {error.code}: {text}") from None
            raise _refusal(json.loads(text)) from None
        if answer.get("node_errors"):  # the server runs the outputs that are valid and drops the rest
            self.post("/queue", {"delete": [answer["prompt_id"]]})
            self.interrupt(answer["prompt_id"])
            raise _refusal(answer)
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 3600) -> dict:
        """Wait for a queued graph; return its history entry, or raise GraphError."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry.get("status"):
                _raise_if_failed(entry)
                return entry
            time.sleep(0.1)
        raise ServerError(f"expected the graph to finish in {timeout:.0f} s, but it did not; see {self.log_file}.")

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Interrupt the running graph, or only if it is this one."""
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def free(self) -> None:
        """Have the server unload its models and forget cached results, before it runs the next graph."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        # A worker that was just falling asleep misses the request; a graph wakes it, and after a graph it looks for requests.
        number = {"class_type": "PrimitiveInt", "inputs": {"value": 0}}
        self.run({"1": number, "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}})

    def outputs(self, history: dict, node_id: str | int | None = None, kind: str = "output") -> list[Path]:
        """The pictures that a finished graph saved (`kind` "temp": previewed), of all its nodes or of one."""
        found = []
        for node, result in history["outputs"].items():
            if node_id is None or node == str(node_id):
                found += [image for image in result.get("images", []) if image["type"] == kind]
        return [self.base / image["type"] / image["subfolder"] / image["filename"] for image in found]

    def _request(self, path: str, body: dict | None = None, timeout: float = 60) -> Any:
        """One HTTP request; a dead server gives its last words."""
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
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _check_port_free(port: int) -> None:
    """Fail if somebody listens on this port, or may not."""
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise ServerError(
                f"expected port {port} to be free, but another program uses it; close that program, or choose another port "
                "with --port (0 takes a free one)."
            )


@functools.cache
def _has_accelerator(python: Path) -> bool:
    """Whether this interpreter's torch sees a graphics card."""
    code = "import torch as t; print(t.cuda.is_available() or t.backends.mps.is_available() or t.xpu.is_available())"
    answer = subprocess.run([str(python), "-c", code], env=clean_environment(), capture_output=True, text=True)
    if answer.returncode:
        last = answer.stderr.strip().splitlines()[-1:]
        raise ServerError(f"expected torch in {python}, but it said: {' '.join(last)}; install ComfyUI's requirements there.")
    return answer.stdout.strip() == "True"


def _refusal(answer: dict) -> GraphError:
    """The error for a graph that did not validate."""
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
    """Raise GraphError for a history entry that tells of a failure or an interruption."""
    for name, told in entry["status"].get("messages", []):
        if name == "execution_error":
            raise GraphError([told["exception_message"].strip()], told["node_type"], str(told["node_id"]))
        if name == "execution_interrupted":
            raise GraphError(["interrupted"], told.get("node_type") or "", str(told.get("node_id") or ""), interrupted=True)
    if entry["status"].get("status_str") == "error":
        raise GraphError(["the graph failed without a message"])
