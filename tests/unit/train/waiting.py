"""What the host waits for in a micro-batch on the device of `tests.pretend`: `python -m ... MODEL`, a line for each."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.train.adapting import adapt
from appliance.train.coupling import uncouple
from appliance.train.engine import Engine
from tests.pretend import DEVICE, Pretending, waits
from tests.unit.train import rig


def main() -> None:
    warnings.simplefilter("ignore")
    model = rig.load(Path(sys.argv[1]))
    with Pretending():
        adapter = adapt(model.to(DEVICE), LoraSpec(r=4), 1)
        engine = Engine(adapter, rig.plan(), EngineOptions(physical_tokens=256), 0)
        uncouple(engine, [16, 24, 32])
        units = [[rig.encoded(n, n)] for n in (10, 20, 20, 21, 30, 16, 16)]
        for kind, batch in (("records", units), ("units", [[*units[0], *units[1]], [*units[2], *units[3]]])):
            waits.clear()
            engine.accumulate(batch)
            for wait in waits:
                print(kind, wait)
            assert engine.sum.take().any()
    print("done", flush=True)
    os._exit(0)  # torch's threads for a device that there is not do not end by themselves


if __name__ == "__main__":
    main()
