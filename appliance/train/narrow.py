"""A mechanism with an adapter of two layers beside the one that trains, for what does not follow from its size.

Units, micro-batches, steps, phases and ranks are many; the parameters of a real adapter are millions. What is counted
over the former is watched on a mechanism that shares the base model, the encoder, the noise source, the row counts and
the settings of the engine with the one that trains, and has a gradient buffer, a sum, an optimiser and weights of its
own. No gradient is computed on it: they are given (`train.standins`).
"""

from __future__ import annotations

import copy

from torch import nn

from appliance.jobs.plan import PrivacyPlan
from appliance.train.clipping import ExactSum
from appliance.train.engine import Engine
from appliance.train.lora import Adapter, GradientBuffer, Site
from appliance.train.mechanism import Assembled
from appliance.train.optimizer import ExactDPOptimizer
from appliance.train.rows import RowCounts, candidates

_SITES = 2


def narrowed(whole: Assembled, plan: PrivacyPlan) -> Assembled:
    """Make a mechanism like `whole`, for `plan`, that trains copies of its smallest layers from their start.

    Args:
      whole: stays as it is.
      plan: of the narrow mechanism; clip and noise are those of the plan of `whole`.
    """
    adapter = _adapter(whole.adapter)
    engine = _engine(whole, adapter, plan)
    optimizer = whole.optimizer
    lr = float(optimizer.param_groups[0]["lr"])
    return Assembled(adapter, whole.encoder, engine, ExactDPOptimizer(adapter, engine.sum, optimizer._noise, plan, lr))


def _adapter(whole: Adapter) -> Adapter:
    smallest = sorted(whole.sites, key=lambda site: (site.end - site.offset, site.index))[:_SITES]
    sites: list[Site] = []
    for site in smallest:
        made = copy.copy(site)
        made.index, made.offset = len(sites), sites[-1].end if sites else 0
        made.middle = made.offset + site.middle - site.offset
        made.end = made.offset + site.end - site.offset
        made.a = nn.Parameter(site.a.detach().clone(), requires_grad=site.a.requires_grad)
        made.b = nn.Parameter(site.b.detach().clone())
        sites.append(made)
    weights = nn.ParameterList([p for site in sites for p in (site.a, site.b)])
    return Adapter(model=weights, peft_model=whole.peft_model, sites=tuple(sites))


def _engine(whole: Assembled, adapter: Adapter, plan: PrivacyPlan) -> Engine:
    engine, buffer = copy.copy(whole.engine), whole.engine.buffer
    engine.adapter = adapter
    engine.buffer = GradientBuffer(adapter.parameters, len(buffer.data), buffer.data.device, buffer.data.dtype)
    engine.sum = ExactSum(
        plan.max_grad_norm, plan.clipping, adapter.parameters, engine.buffer.width, buffer.data.device
    )
    if engine.counts is None:  # no proof is due where no gradient is computed
        padded = {engine.pad_length(length): candidates(engine.most_rows(length)) for length in whole.encoder.buckets}
        engine.counts = RowCounts(padded)
    return engine
