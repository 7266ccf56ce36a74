"""`appliance serve`: start, drill, bench, client."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli import render, settings, trials
from appliance.cli.options import RunArgument
from appliance.cli.settings import Settings
from appliance.errors import ServingDegraded, UsageError
from appliance.events.serving import ServingEnded
from appliance.flows.home import Home
from appliance.flows.serving import clients as clients_flow
from appliance.flows.serving.start import Listening, Wanted, prepare
from appliance.flows.serving.start import start as start_flow
from appliance.flows.serving.trials import bench as bench_flow
from appliance.flows.serving.trials import drill as drill_flow
from appliance.jobs.serve import GatewayState, Health, Limits
from appliance.jobs.trials import BenchJob

app = typer.Typer()
client = typer.Typer(name="client", help="Who may ask a served model.", no_args_is_help=True)
app.add_typer(client)

VLLM = "python3 -m vllm.entrypoints.openai.api_server"
KINDS = ("llama.cpp", "vllm", "transformers")
Primary = Annotated[
    str,
    typer.Option(
        help="Engine and model: llama.cpp:DIR (a quantised one), vllm:DIR or transformers:DIR (a merged one)."
    ),
]
Fallback = Annotated[str, typer.Option(help="A second engine and model, which answers when the first one fails.")]
Vllm = Annotated[str, typer.Option(help="How vLLM's server is started, in its own environment, with further options.")]
Slots = Annotated[int, typer.Option(min=1, help="Answers that an engine writes at the same time.")]
Context = Annotated[int, typer.Option("--context", min=64, help="Tokens of prompt and answer together.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of an engine on the processor.")]
FirstToken = Annotated[float, typer.Option(min=0.1, help="Seconds after which an engine without a token has failed.")]
Starting = Annotated[float, typer.Option(min=1, help="Seconds that an engine has from its start to its first token.")]
NextToken = Annotated[float, typer.Option(min=0.1, help="Seconds between tokens after which it has failed.")]


@app.command()
def start(
    context: typer.Context,
    run: RunArgument,
    primary: Primary,
    fallback: Fallback = "",
    socket: Annotated[Path | None, typer.Option(help="Listen on this Unix socket instead of loopback.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 takes a free one.")] = 8080,
    vllm: Vllm = VLLM,
    slots: Slots = 4,
    context_tokens: Context = 2048,
    threads: Threads = 1,
    first_token: FirstToken = 30.0,
    next_token: NextToken = 15.0,
    starting: Starting = 900.0,
    body_kib: Annotated[int, typer.Option(min=1, help="Size of a request, in KiB.")] = 1024,
) -> None:
    """Serve the model of a finished, marked run as OpenAI's API, until Ctrl-C; answers name engine, model and run."""
    chosen = settings.of(context)
    wanted = engines(primary, fallback, vllm, slots, context_tokens, threads)
    health = Health(first_token_s=first_token, next_token_s=next_token, start_s=starting)
    listening = Listening(socket=socket, port=port, limits=Limits(body_bytes=body_kib << 10), health=health)
    home, run = chosen.home(), chosen.run(run)
    if chosen.dry_run:
        _preview(chosen, run, wanted, listening)
        return
    watch, tell = _teller(chosen, len(wanted)), partial(_say_damaged, chosen, home)
    ended = start_flow(home, run, wanted, listening, chosen.operator(), watch, tell)
    render.result(chosen, "serve.start", ended.facts(), render.fields(ended.facts().items()))


@app.command()
def drill(
    context: typer.Context,
    run: RunArgument,
    primary: Primary,
    fallback: Fallback,
    requests: Annotated[int, typer.Option(min=10, help="Requests in all.")] = 1000,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests in a second.")] = 5.0,
    vllm: Vllm = VLLM,
    slots: Slots = 4,
    context_tokens: Context = 2048,
    threads: Threads = 1,
    first_token: FirstToken = 5.0,
    next_token: NextToken = 5.0,
    starting: Starting = 900.0,
) -> None:
    """Kill, stop, garble, slow and cut the engines under load, on a gateway of its own, and say what was lost.

    Exit status 12 if a request was lost before its first token, a broken stream did not say so, or an engine did not
    come back.
    """
    chosen = settings.writing(context)
    wanted = engines(primary, fallback, vllm, slots, context_tokens, threads)
    listening = _unheard(first_token, next_token, starting)
    result = drill_flow(chosen.home(), chosen.run(run), wanted, listening, (requests, rate), chosen.operator())
    render.result(chosen, "serve.drill", result.model_dump(exclude={"schema_"}), trials.drilled(result))
    failed = sum(fault.lost + fault.unlabelled + (not fault.came_back) for fault in result.faults)
    if failed:
        raise ServingDegraded(f"the drill lost answers or engines: {failed}")


@app.command()
def bench(
    context: typer.Context,
    run: RunArgument,
    primary: Primary,
    rate: Annotated[float, typer.Option(min=0.01, help="Requests in a second, on average.")] = 1.0,
    seconds: Annotated[float, typer.Option(min=1, help="In which they come.")] = 120.0,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 64,
    prompt_words: Annotated[int, typer.Option(min=1, help="Words of a prompt.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the times at which they come.")] = 0,
    vllm: Vllm = VLLM,
    slots: Slots = 4,
    context_tokens: Context = 2048,
    threads: Threads = 1,
    starting: Starting = 900.0,
) -> None:
    """Measure TTFT, TPOT and latency of a model under requests that come at random, whatever answers come."""
    chosen = settings.writing(context)
    wanted = engines(primary, "", vllm, slots, context_tokens, threads)
    load = partial(
        BenchJob, rate=rate, seconds=seconds, answer_tokens=answer_tokens, prompt_words=prompt_words, seed=seed
    )
    home, run = chosen.home(), chosen.run(run)
    result = bench_flow(
        home, run, wanted, _unheard(120.0, 60.0, starting), lambda job: load(run_id=run, serve=job), chosen.operator()
    )
    render.result(chosen, "serve.bench", result.model_dump(exclude={"schema_"}), trials.measured(result))


def _unheard(first_token: float, next_token: float, starting: float) -> Listening:
    """Say how a gateway is that nobody outside asks."""
    health = Health(first_token_s=first_token, next_token_s=next_token, start_s=starting)
    return Listening(socket=None, port=0, limits=Limits(), health=health)


def engines(primary: str, fallback: str, vllm: str, slots: int, context: int, threads: int) -> tuple[Wanted, ...]:
    """Read which engines are asked for. Raises `UsageError`."""
    found = []
    for name, text in (("primary", primary), ("fallback", fallback)):
        kind, _, model = text.partition(":")
        if name == "fallback" and not text:
            continue
        if kind not in KINDS or not model:
            raise UsageError(f"not an engine with its model: '{text}'", hint="for example llama.cpp:DIRECTORY")
        command = tuple(shlex.split(vllm)) if kind == "vllm" else ()
        more: dict[str, Any] = {"kind": kind, "command": command}
        found.append(Wanted(name=name, model=Path(model), slots=slots, context=context, threads=threads, **more))
    return tuple(found)


def _preview(chosen: Settings, run: str, wanted: tuple[Wanted, ...], listening: Listening) -> None:
    home = chosen.home()
    with home.reader() as ledger:
        _, job, _ = prepare(ledger, home, run, wanted, listening)
    models = {engine.name: engine.model_sha256 for engine in job.engines}
    document = {"dry_run": True, "run": job.run_id, "model": job.model, "engines": models}
    render.result(chosen, "serve.start", document, [f"{job.run_id} may be served as {job.model}"])


def _teller(chosen: Settings, engines: int) -> Any:
    """Make what says how the gateway is: where it listens, and each engine that comes or goes."""
    told: dict[str, object] = {}

    def tell(state: GatewayState) -> None:
        if told.get("address") != state.address and state.address:
            told["address"] = state.address
            render.note(chosen, f"listening on {state.address}" + ("" if engines > 1 else "; there is no fallback"))
        for engine in state.engines:
            if told.get(engine.name, False) != engine.well:
                told[engine.name] = engine.well
                render.note(chosen, f"{engine.name} is {'well' if engine.well else 'out of service'}")

    return tell


def _say_damaged(chosen: Settings, home: Home, ended: ServingEnded) -> None:
    """Say where the damaged spool of an earlier serving is kept; nothing of one that is whole."""
    if ended.damaged_sha256:
        kept = home.set_aside / ended.serving_id
        said = f"{ended.damaged_line} degraded answers before the damage are in the ledger, the rest is kept in {kept}"
        render.note(chosen, f"the spool of {ended.serving_id}, which was killed, is damaged: {said}")


@client.command("add")
def client_add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The client's name.")],
    per_minute: Annotated[int, typer.Option(min=1, help="Requests in a minute.")] = 600,
) -> None:
    """Let a client ask served models. Its key is shown once; only a digest of it is kept."""
    chosen = settings.writing(context)
    key = clients_flow.add(chosen.home(), name, per_minute, chosen.operator())
    render.result(chosen, "serve.client.add", {"client": name, "key": key, "per_minute": per_minute}, [key])
    render.note(chosen, f"this is the only time that the key of {name} is shown")


@client.command("revoke")
def client_revoke(context: typer.Context, name: Annotated[str, typer.Argument(help="The client's name.")]) -> None:
    """Let a client ask no longer; gateways that run turn it away at once."""
    chosen = settings.writing(context)
    revoked = clients_flow.revoke(chosen.home(), name, chosen.operator())
    document = {"client": name, "key_sha256": revoked.key_sha256}
    render.result(chosen, "serve.client.revoke", document, [f"{name} is turned away"])


@client.command("list")
def client_list(context: typer.Context) -> None:
    """List who may ask."""
    chosen = settings.of(context)
    found = clients_flow.listed(chosen.home())
    rows = [(one.name, one.per_minute, one.key_sha256[:16]) for one in found]
    lines = render.table(("client", "per minute", "digest of the key"), rows) if rows else ["nobody may ask yet"]
    render.result(chosen, "serve.client.list", {"clients": [one.model_dump() for one in found]}, lines)
