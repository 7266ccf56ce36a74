"""Serving a model: what the gateway is asked to do, what it says while it does, and what it says at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from appliance.jobs.job import IsolationSpec, Job, JobId
from appliance.values import Count, Digest, Positive, Value, Word

EngineKind = Literal["llama.cpp", "vllm", "transformers", "command"]
REFUSED = "refused"
"""What an engine reached of isolation when it was not started for want of it."""
STATE, SPOOL, CLIENTS = "state.json", "spool.jsonl", "clients.json"


class EngineSpec(Value):
    """An engine: an existing server in a process of its own, reached through a Unix socket.

    Attributes:
      name: what it is called in answers and in the ledger.
      kind: which server it is; "command" is any other that speaks OpenAI's protocol on a Unix socket.
      model: a GGUF file (llama.cpp) or a directory of safetensors (vLLM, transformers).
      model_sha256: digest of its directory, for which an entry of the ledger vouches.
      command: how it is started, without its arguments for vLLM; the words {model}, {socket}, {name}, {context} and
        {slots} in it are filled in. Empty for the kinds that are installed with the appliance.
      slots: answers that it writes at the same time; one more is kept free for the question that tests it.
      context: tokens of prompt and answer together.
      threads: of the processor.
    """

    name: Word
    kind: EngineKind
    model: str
    model_sha256: Digest
    command: tuple[str, ...] = ()
    slots: Count = 4
    context: Count = 2048
    threads: Count = 1


class Limits(Value):
    """What one client, or one request, may take.

    Attributes:
      body_bytes: of a request.
      answer_tokens: of an answer; a request that names no number gets this many at most.
      connections: that are open at once.
      queue: requests that wait for a place at an engine.
      header_s: in which the head of a request must have come.
      body_s: in which its body must have come.
      send_s: in which a client must take what is sent to it.
    """

    body_bytes: Count = 1 << 20
    answer_tokens: Count = 4096
    connections: Count = 4096
    queue: Count = 2048
    header_s: Positive = 10.0
    body_s: Positive = 20.0
    send_s: Positive = 30.0


class Health(Value):
    """When an engine counts as failed, and when it is taken back. Counts only: the same events decide the same.

    Attributes:
      first_token_s: an engine that has not begun its answer after this long has failed.
      next_token_s: and one that stopped within an answer for this long.
      answer_s: and one that is not done after this long.
      probe_s: pause between questions of one token; none is asked while answers come.
      failures: in a row, after which it gets no more requests.
      proofs: questions in a row that it must answer to be taken back; twice as many for each time that it failed.
      patience_s: how long a request waits while no engine is well.
      start_s: how long its process has from its start to its first token, before it is started anew. A large model is
        read for minutes.
      restart_s: when it is out of service and no token came for so long after the last, its process is started anew.
    """

    first_token_s: Positive = 30.0
    next_token_s: Positive = 15.0
    answer_s: Positive = 600.0
    probe_s: Positive = 2.0
    failures: Count = 2
    proofs: Count = 3
    patience_s: Positive = 30.0
    start_s: Positive = 900.0
    restart_s: Positive = 60.0


class ServeJob(Job):
    """`job.json` of the gateway. Engines are in order: the first that is well answers.

    Attributes:
      model: the name under which clients ask for it.
      socket: Unix socket to listen on, or empty.
      port: port of loopback to listen on otherwise; 0 takes any.
      clients: file of the clients and the digests of their keys.
    """

    kind: Literal["serve"] = "serve"
    serving_id: JobId
    model: Word
    engines: Annotated[tuple[EngineSpec, ...], Field(min_length=1, max_length=4)]
    socket: str = ""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    clients: str
    limits: Limits = Limits()
    health: Health = Health()
    isolation: IsolationSpec = IsolationSpec()


class EngineState(Value):
    """How an engine is now.

    Attributes:
      pid: its process, or 0.
      network: what its sandbox leaves it of the network.
      opened: how often it was taken out of service.
    """

    name: str
    well: bool
    pid: int
    network: str
    opened: int
    started: int


class GatewayState(Value):
    """`state.json`: how the gateway is now. Numbers of requests, never what is in them.

    Attributes:
      address: where it listens; empty before it does.
      busy_s: seconds in which requests were open, added up over the requests.
    """

    address: str
    engines: tuple[EngineState, ...]
    answered: int
    degraded: int
    cut: int
    lost: int
    refused: int
    left: int
    busy_s: float


class Degraded(Value):
    """A line of the spool: an answer that was not simply the first engine's.

    Attributes:
      number: counts the lines, from 0.
      id: of the answer, as the client has it.
      reason: "fallback" (another engine answered, the first being out), "retried" (an engine failed before its first
        token), "cut" (after it: the answer is incomplete, and says so), "lost" (no engine answered).
      engine: who answered; empty for lost.
      failed: what failed before, "engine: reason".
    """

    number: int
    at: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$")]
    id: Annotated[str, Field(pattern=r"^(chatcmpl|cmpl)-[0-9a-f]{24}$")]
    reason: Literal["fallback", "retried", "cut", "lost"]
    engine: str
    failed: tuple[str, ...]


class Client(Value):
    """A client: of its key only the SHA-256 is kept, and the key is 256 random bits.

    Attributes:
      per_minute: requests that it may make in a minute; as many may come at once.
    """

    name: Word
    key_sha256: Digest
    per_minute: Count = 600


class Clients(Value):
    """`clients.json`: who may ask."""

    schema_: Literal["appliance.clients/1"] = Field(default="appliance.clients/1", alias="schema")
    clients: tuple[Client, ...] = ()

    @staticmethod
    def read(path: Path) -> Clients:
        """Read them; nobody where there is no file. Raises ValidationError."""
        try:
            return Clients.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return Clients()
