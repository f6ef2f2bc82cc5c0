"""Settings of the objective: loss, correction, KL to a reference, and the updates on a batch. Light: no torch
here."""

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    create_model,
    model_validator,
)

from trainer.correction import CORRECTIONS, correction_of
from trainer.loss import LOSSES, OwnSettings, loss_of
from trainer.own_function import is_own
from trainer.section import Section, one_of

LossName = Annotated[str, one_of(lambda: LOSSES, own=True)]
CorrectionName = Annotated[str, one_of(lambda: CORRECTIONS, own=True)]


class KlConfig(Section):
    """A penalty of the policy's KL divergence to a reference policy.

    weight: beta. estimator: k1, k2 or k3 (`trainer.kl`). place: in the `loss`, where its gradient is the
    estimator's; or in the `reward`, where each token's advantage is less what the KL from it on costs.
    importance: in the loss, weigh a token by the present policy over the version that wrote it. reference:
    the policy of the `start`, or a folder with one of the same architecture. every: the reference is the
    policy of the latest step that so many divide; 0 for none such.
    """

    weight: PositiveFloat
    estimator: Literal["k1", "k2", "k3"]
    place: Literal["loss", "reward"] = "loss"
    importance: bool = False
    reference: str = "start"
    every: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _makes_sense(self) -> "KlConfig":
        if self.place == "loss" and self.estimator == "k1" and not self.importance:
            raise ValueError(
                'estimator "k1" in the loss has a gradient whose mean is 0: set importance = true, '
                'place = "reward", or another estimator'
            )
        if self.place == "reward" and self.importance:
            raise ValueError(
                'importance is of a KL in the loss, and place is "reward": leave it out'
            )
        if self.every and self.reference != "start":
            raise ValueError(
                f"reference ({self.reference}) and every ({self.every}) name two references: leave one out"
            )
        return self


class LossConfig(Section):
    """The objective: a loss and a correction of the engine's log-probs, each with a section of its own
    name (`trainer.loss`, `trainer.correction`), such as `{"kind": "gspo", "gspo": {"clip_high": 5e-4}}`.

    max_completion_tokens: T_max, the constant denominator of a trajectory's sum over tokens (`longcat`,
    `dr_grpo`, `hispo`).
    behaviour: whose log-probs the ratio's denominator is: the `learner`'s, computed again with the
    weights that wrote the token (LongCat), or the `engine`'s as they came; `auto` is the learner's, of which
    each update computes a part and takes the engine's for the rest where the two agree (`trainer.behaviour`).
    correction: of the gap between learner and engine; where it is missing, the loss's usual one.
    kl: to a reference; where it is missing there is none. entropy_weight: of the mean entropy, which the loss
    favours by so much.
    own: keyword arguments of a loss of the user's own, `kind = "module:function"`.
    """

    # Sections of losses and corrections are kept as extra fields: which ones there are, the registries say.
    model_config = ConfigDict(extra="allow")

    kind: LossName = "longcat"
    max_completion_tokens: PositiveInt = 128
    behaviour: Literal["auto", "learner", "engine"] = "auto"
    correction: CorrectionName = "tis"
    kl: KlConfig | None = None
    entropy_weight: float = Field(default=0.0, ge=0)
    own: dict[str, bool | int | float | str] = {}

    @classmethod
    def sections(cls) -> dict[str, type[Section]]:
        """The settings' class of each loss and correction, by name."""
        entries = [*LOSSES.items(), *CORRECTIONS.items()]
        return {name: one.settings for name, one in entries if one.settings.model_fields}

    @property
    def loss_settings(self) -> Section:
        """The settings of the chosen loss."""
        if is_own(self.kind):
            return OwnSettings.model_validate(self.own)
        return self._settings(self.kind, LOSSES[self.kind].settings)

    @property
    def correction_settings(self) -> Section:
        """The settings of the chosen correction."""
        return self._settings(self.correction, correction_of(self.correction).settings)

    def _settings(self, name: str, kind: type[Section]) -> Section:
        found = (self.model_extra or {}).get(name)
        return found if isinstance(found, kind) else kind()

    @model_validator(mode="before")
    @classmethod
    def _with_sections(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kinds = cls.sections()
        others = {name: value for name, value in given.items() if name not in cls.model_fields}
        found = _every_section(tuple(kinds.items())).model_validate(others)
        kind, correction = given.get("kind", "longcat"), "none"
        if isinstance(kind, str) and kind in LOSSES and given.get("behaviour") != "engine":
            correction = LOSSES[kind].correction
        chosen = (kind, given.get("correction", correction))
        kept = {name: value for name, value in found if name in chosen or value != kinds[name]()}
        return {"correction": correction, **given, **kept}

    @model_validator(mode="after")
    def _makes_sense(self) -> "LossConfig":
        for name, value in (self.model_extra or {}).items():
            if name not in (self.kind, self.correction) and isinstance(value, Section):
                raise ValueError(
                    f"[{name}] is set, and nothing reads it: kind is {self.kind!r}, the correction is "
                    f"{self.correction!r}"
                )
        if self.behaviour == "engine" and self.correction != "none":
            raise ValueError(
                f'correction {self.correction!r} needs behaviour = "learner": with the engine\'s '
                "log-probs as behaviour there is no gap to correct"
            )
        if self.own and not is_own(self.kind):
            raise ValueError(
                f"[own] holds arguments of a loss of your own, and kind is {self.kind!r}: leave it out, or "
                "name a loss as module:function"
            )
        own = loss_of(self.kind).masks_gap
        if own and (self.behaviour == "engine" or self.correction != "none"):
            raise ValueError(
                f'kind "{self.kind}" masks and weighs the gap between learner and engine itself: it needs '
                'behaviour = "learner" and correction = "none"'
            )
        return self


@cache
def _every_section(kinds: tuple[tuple[str, type[Section]], ...]) -> type[Section]:
    """A class with a section of each kind. To make one takes milliseconds."""
    fields: dict[str, Any] = {name: (kind, kind()) for name, kind in kinds}
    return create_model("LossSections", __base__=Section, **fields)


class UpdatesConfig(Section):
    """Updates on one batch, which together make one policy version.

    mini_batches: so many updates share out the batch's samples. epochs: how often all of them are trained on.
    max_kl: no further update is made once the policy is so far, in nats per token of the next mini-batch,
    from the one that the batch began with. One update has the ratio 1 where a batch is fresh; several need
    clipping.
    """

    mini_batches: PositiveInt = 1
    epochs: PositiveInt = 1
    max_kl: PositiveFloat | None = None

    @property
    def count(self) -> int:
        """Updates on a batch of as many samples or more."""
        return self.mini_batches * self.epochs

    @model_validator(mode="after")
    def _makes_sense(self) -> "UpdatesConfig":
        if self.max_kl is not None and self.count == 1:
            raise ValueError(
                f"max_kl ({self.max_kl:g}) ends the updates on a batch early, and there is one: set "
                "mini_batches or epochs too, or leave it out"
            )
        return self
