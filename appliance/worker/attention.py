"""A heatmap of attention on the operator's own prompt: no key, no private record, and nothing of it in a file here."""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING, Any

from appliance.errors import ArtefactMissing, DataInvalid
from appliance.jobs.attention import AttentionJob, AttentionResult, Faithfulness, Heatmap, Picture
from appliance.jobs.exchange import Exchanged
from appliance.jobs.rundir import RunDir
from appliance.jobs.variants import BASE
from appliance.worker import confinement
from appliance.worker.variants import Opened, enter, open_variants

if TYPE_CHECKING:
    from torch import Tensor

    from appliance.evaluate.attention import Weights

JOB = AttentionJob


def run(job: AttentionJob, run_dir: RunDir) -> AttentionResult:
    """Hear a prompt, answer with a heatmap."""
    exchange = Exchanged.inherited()
    isolation = enter(job, run_dir)
    prompt = str(exchange.hear())
    if job.variant not in (BASE, *job.adapters):
        raise ArtefactMissing(f"the run has no {job.variant} adapter", hint="`appliance watermark embed RUN` marks it")
    opened = open_variants(job)
    exchange.say(_heatmap(job, opened, prompt).model_dump())
    return AttentionResult(run_id=job.run_id, isolation=isolation, libraries=confinement.libraries())


def _heatmap(job: AttentionJob, opened: Opened, prompt: str) -> Heatmap:
    from appliance.evaluate.attention import SMALL, look
    from appliance.evaluate.prompting import write_prompt
    from appliance.train.adapting import body

    model, writer = opened.variants.model, opened.writer()
    opened.variants.use(None if job.variant == BASE else job.variant)
    model.set_attn_implementation("eager")  # the others do not tell their weights
    ids = writer.encode(write_prompt(opened.tokenizer, job.train.template, [("user", prompt)]))
    if not 3 <= len(ids) <= job.most_tokens:
        raise DataInvalid(f"the prompt has {len(ids)} tokens; 3 to {job.most_tokens} are drawn", where="--prompt")
    began = time.monotonic()
    weights = look(body(model), opened.logits, ids)
    rollup = _picture("roll-up", weights.rollup())
    layers = [_picture(f"layer {n}", layer.mean(dim=0), most=2 * SMALL) for n, layer in enumerate(weights.heads)]
    heads = [[_picture(f"head {n}", head, most=SMALL) for n, head in enumerate(layer)] for layer in weights.heads]
    seconds = time.monotonic() - began
    return Heatmap(
        variant=job.variant,
        tokens=[str(opened.tokenizer.decode([token])) for token in ids],
        predicted=str(opened.tokenizer.decode([weights.predicted])),
        rollup=rollup,
        layers=layers,
        heads=heads,
        row_error=weights.row_error,
        seconds=round(seconds, 3),
        faithfulness=_faithfulness(job, opened, ids, weights) if job.orders else None,
    )


def _picture(name: str, weights: Tensor, most: int | None = None) -> Picture:
    from appliance.evaluate.attention import pixels

    made = pixels(weights, most)
    return Picture(name=name, size=len(made), pixels=base64.b64encode(made.numpy().tobytes()).decode())


def _faithfulness(job: AttentionJob, opened: Opened, ids: list[int], weights: Weights) -> Faithfulness:
    from appliance.evaluate.attention import delete
    from appliance.train.adapting import body

    inner: Any = body(opened.variants.model)
    drops = delete(inner, opened.logits, ids, weights, job.orders)
    return Faithfulness(
        attention=round(drops.attention, 6),
        gradient=round(drops.gradient, 6),
        random=round(sum(drops.random) / len(drops.random), 6),
        orders=job.orders,
        p=round(drops.p, 6),
    )
