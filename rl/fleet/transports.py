"""The weight transports that there are, by name. A new one is a file of its own and an entry here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from rl.actors.handles import Actors
from rl.fleet.file_transport import FileTransport
from rl.fleet.weight_transport import WeightTransport

TransportName = Literal["file"]

# Each is made for a run's actors and the run's folder on the nodes (`cluster.weights_dir`).
TRANSPORTS: Mapping[TransportName, Callable[[Actors, Path], WeightTransport]] = {
    "file": FileTransport,
}
