"""Settings of a fusion: its method, and what is done to task vectors. Light: no torch here."""

from typing import Literal

from pydantic import Field, PositiveFloat, model_validator

from trainer.config import Dtype
from trainer.section import Section

Method = Literal["average", "task", "ties", "dare", "sce"]
# Shares that stay where nothing is said: TIES keeps 20 % (arXiv 2306.01708, section 5), SCE all. DARE drops
# up to 90 % of what supervised training changed (arXiv 2311.03099); RL changes little, and half of it stays.
DENSITY = {"ties": 0.2, "dare": 0.5, "sce": 1.0}


class FusionConfig(Section):
    """A fusion of M models (`trainer.fusion.deltas`).

    method: `average` of the weights, or what becomes of the task vectors, each a model's weights less the
    base's. weights: of the models, M of them, equal where none are given; they are divided by their sum.
    scale: the factor of the merged task vector. density: the share of each task vector's elements that stays:
    the largest with `ties`, drawn ones with `dare`, those of the largest variance between the models with
    `sce`. drop: with `ties` and `sce`, DARE's dropout of so many elements before. normalise: task vectors of
    a tensor get the same norm, the mean of theirs. router: of the MoE's routers and their biases: their
    `average`, the `base`'s, what the `method` makes of them, or the number of a model, from 1. seed: of what
    is drawn. dtype: of the result; where it is missing, that of the base or of the first model.
    """

    method: Method = "average"
    weights: tuple[PositiveFloat, ...] = ()
    scale: PositiveFloat = 1.0
    density: float | None = Field(default=None, gt=0, le=1)
    drop: float = Field(default=0.0, ge=0, lt=1)
    normalise: bool = False
    router: Literal["average", "base", "method"] | int = "average"
    seed: int = Field(default=0, ge=0)
    dtype: Dtype | None = None

    @property
    def kept(self) -> float:
        """The density, or the method's usual one."""
        return DENSITY.get(self.method, 1.0) if self.density is None else self.density

    @property
    def dropped(self) -> float:
        """The share of elements that DARE's dropout takes."""
        return 1 - self.kept if self.method == "dare" else self.drop

    def weights_of(self, models: int) -> tuple[float, ...]:
        """The weights of so many models, whose sum is 1."""
        given = self.weights or (1.0,) * models
        return tuple(one / sum(given) for one in given)

    def check(self, models: int, *, base: bool) -> None:
        """Raise ValueError where the settings do not fit so many models, with a base or without."""
        if models < 2:
            raise ValueError(f"a fusion is of two models or more, and there is {models}")
        if self.weights and len(self.weights) != models:
            raise ValueError(f"weights: {len(self.weights)} of them for {models} models")
        if isinstance(self.router, int) and not 1 <= self.router <= models:
            raise ValueError(
                f"router: there is no model {self.router}; they are numbered from 1 to {models}"
            )
        if not base and self.method != "average":
            raise ValueError(
                f"method {self.method!r} merges what each model changed: name the model that they began as "
                "with --base"
            )
        if not base and (self.normalise or self.router == "base"):
            what = "normalise" if self.normalise else "router: base"
            raise ValueError(f"{what} needs the model that they began as: name it with --base")

    @model_validator(mode="after")
    def _makes_sense(self) -> "FusionConfig":
        if self.density is not None and self.method not in DENSITY:
            raise ValueError(f"density ({self.density:g}) is of {', '.join(DENSITY)}: leave it out")
        if self.drop and self.method not in ("ties", "sce"):
            raise ValueError(
                f"drop ({self.drop:g}) goes with ties and sce: by itself it is method dare with density "
                f"{1 - self.drop:g}"
            )
        if self.weights and self.method == "sce":
            raise ValueError("weights: sce computes its own, leave them out")
        if self.method == "average" and (self.normalise or self.scale != 1):
            what = "normalise" if self.normalise else "scale"
            raise ValueError(f"{what} is of task vectors: with method task it has an effect")
        return self
