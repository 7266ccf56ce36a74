"""What is said of the home: where the parts lie that need not lie in it."""

from __future__ import annotations

from typing import ClassVar, Literal

from appliance.events.event import Digest, Event, Text

Place = Literal["home", "outside"]


class HomeConfigured(Event):
    """From here on database, anchor and epoch keys lie where the configuration with this digest says.

    The paths themselves are not stated: they may name a person, and nothing can be erased from an entry.
    """

    type: ClassVar[str] = "home.configured"

    origin: Text
    database: Place
    anchor: Place
    epoch_keys: Place
    sha256: Digest
