"""Settings of the critic that a loss with a critic trains beside the policy. Light: no torch here."""

from typing import Literal

from pydantic import PositiveInt, model_validator

from trainer.section import Section

_OF_TURN = ("width", "layers", "heads")


class CriticConfig(Section):
    """The critic of `ppo`.

    kind: `linear` in the hidden state that predicts a turn's first token, or `turn`, which has beside that
    state an encoding of all turns before (`trainer.turn_critic`). detach: the value's error trains the critic
    alone, and not the policy. width, layers, heads: of a `turn` critic's encoders: what a turn is encoded in,
    layers of the transformer across turns, heads of its attention.
    """

    kind: Literal["linear", "turn"] = "linear"
    detach: bool = False
    width: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 4

    @model_validator(mode="after")
    def _makes_sense(self) -> "CriticConfig":
        usual = CriticConfig.model_fields
        given = [key for key in _OF_TURN if getattr(self, key) != usual[key].default]
        if self.kind == "linear" and given:
            raise ValueError(
                f'{given[0]} is of a critic of kind "turn", and kind is "linear": leave it out, or set kind'
            )
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) has to divide width ({self.width})")
        return self
