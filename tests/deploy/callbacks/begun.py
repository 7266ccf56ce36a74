"""An Ansible callback: note when each task begins, and stand still before the one at which the controller is to be killed.

APPLIANCE_BEGUN names the file of the notes, one line for each task: seconds, a tab, its name. APPLIANCE_HOLD is the name, or
the number counted from 1, of the task before which nothing goes on any more.
"""

from __future__ import annotations

import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """Notes tasks."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "begun"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._number = 0

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Note it, and stand still if it is the one."""
        self._number += 1
        name = task.get_name()
        with open(os.environ["APPLIANCE_BEGUN"], "a") as file:
            file.write(f"{time.monotonic():.2f}\t{name}\n")
        if os.environ.get("APPLIANCE_HOLD", "") in (str(self._number), name.rpartition(" : ")[2]):
            time.sleep(600)

    v2_playbook_on_handler_task_start = v2_playbook_on_task_start
