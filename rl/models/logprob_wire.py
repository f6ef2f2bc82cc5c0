"""The wire to a model that scores given tokens: their log-probs, by vLLM's completions of token ids.

The text is sent as the ids that the policy read and wrote, and none is written but the one that the API asks
for. A log-prob is of the model's own distribution, at the temperature 1. Keeps no time: the pool does.
"""

import json
from typing import Any, cast

from envs.chat_model import ChatAnswer, ChatRequest
from rl.models.call import Refused, ServiceFault
from rl.models.http_wire import SHOWN, HttpWire


class LogprobWire(HttpWire):
    """One server of a model whose log-probs are asked for."""

    async def send(self, request: ChatRequest) -> ChatAnswer:
        """Score `token_ids`: the answer is `{"logprobs": [...]}`, one for each id but the first. Raises
        ServiceFault, Refused."""
        if not request.token_ids:
            raise Refused('a model of use "score" scores tokens, and is asked for none')
        name = await self.model_name()
        body = {
            "model": name,
            "prompt": list(request.token_ids),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        found = await self.asked("POST", "/completions", body)
        try:
            [choice] = found["choices"]
            rows = cast(list[Any], choice["prompt_logprobs"])
            pairs = zip(request.token_ids[1:], rows[1:], strict=True)
            logprobs = [float(row[str(id)]["logprob"]) for id, row in pairs]
        except (KeyError, IndexError, TypeError, ValueError):
            raise ServiceFault(
                f"{self.base}: no log-probs of the tokens asked for: {json.dumps(found)[:SHOWN]}"
            ) from None
        return ChatAnswer(
            text=json.dumps({"logprobs": logprobs}),
            model=name,
            prompt_tokens=len(request.token_ids),
        )
