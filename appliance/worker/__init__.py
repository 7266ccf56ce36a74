"""The compute plane: `python -m appliance.worker RUN_DIR` reads `job.json` and writes `result.json`.

One module for each kind of job; `__main__` hardens the process, locks the run directory and hands over.
"""
