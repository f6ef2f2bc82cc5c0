"""The wire to a reward model: a conversation as one POST to vLLM's `/classify`, its score back as JSON.

Where the model's folder is known, a conversation is sent as the token ids that it was trained on, rendered by
the folder's own chat template turn by turn; a server at a URL renders it itself. The score is the head's
number as it is: no sigmoid; of several heads their weighted sum, with the number of each beside it. Keeps no
time: the pool does.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.chat_model import ChatAnswer, ChatRequest
from envs.message import JsonObject
from envs.text import told
from rl.models.call import Refused, ServiceFault
from rl.models.http_wire import SHOWN, HttpWire
from trainer.reward_heads import Heads, read_heads

if TYPE_CHECKING:
    from rollout.renderer import Renderer


class ScoreWire(HttpWire):
    """One server of a reward model."""

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        model: str = "",
        folder: str = "",
        heads: Sequence[str] = (),
    ) -> None:
        """folder: the reward model's, "" for a server that renders conversations itself, whose `heads` have
        these names and the weight 1 each. Raises ValueError, OSError for a folder that cannot be read."""
        super().__init__(url, key=key, model=model)
        self.folder = folder
        self.heads = Heads(tuple(heads), (1.0,) * len(heads)) if heads else Heads()
        if folder:
            self.heads = read_heads(Path(folder))
        self._renderer: Renderer | None = None

    async def send(self, request: ChatRequest) -> ChatAnswer:
        """Score the conversation: the answer is `{"score": …}`, with `"heads": {NAME: …}` of several.

        Raises ServiceFault, Refused.
        """
        if not self.folder:
            chat = [message.as_chat() for message in request.messages]
            return await self._classified({"messages": chat, "add_generation_prompt": False})
        try:
            ids = self._ids(request)
        except Exception as error:  # a template of others can fail in any way
            raise Refused(f"the conversation cannot be rendered: {told(error)}") from None
        return await self._classified({"input": ids})

    def _ids(self, request: ChatRequest) -> list[int]:
        """The conversation's ids, as `rl.preference_data` makes them for training. Raises ValueError."""
        if self._renderer is None:
            from rollout.renderer import Renderer

            self._renderer = Renderer(self.folder)
        said = [message.role for message in request.messages]
        if "assistant" not in said:
            raise ValueError("there is no answer in it")
        first = said.index("assistant")
        chat = request.messages
        return self._renderer.demonstration(chat[:first], (), chat[first:])[0]

    async def _classified(self, asked: dict[str, Any]) -> ChatAnswer:
        name = await self.model_name()
        body = {"model": name, "use_activation": False, **asked}
        found = await self.asked("POST", "/classify", body)
        try:
            numbers = [float(one) for one in found["data"][0]["probs"]]
            usage = found.get("usage") or {}
            answer: JsonObject = {"score": self.heads.score(numbers)}
            if len(numbers) > 1:
                answer["heads"] = dict(zip(self.heads.names, numbers, strict=True))
            return ChatAnswer(
                text=json.dumps(answer),
                model=name,
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
            )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            heads = ", ".join(self.heads.names)
            raise ServiceFault(
                f"{self.base}: no score (of {heads}): {json.dumps(found)[:SHOWN]}"
            ) from None
