"""Teachers that are services: what they say of a group's samples, asked for once these are made.

In: samples, and the model that scores an environment's. Out: the samples with their teacher's log-probs, and
why a trajectory has none: a fault of the service is never an advantage of 0.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress

from envs.chat_model import ChatModel, ChatRequest, ModelFault
from trainer.sample import TrainSample


async def taught(
    samples: Sequence[TrainSample], teacher_of: Callable[[str], ChatModel | None]
) -> tuple[list[TrainSample], dict[str, str]]:
    """The samples with `teacher_logprobs` where their environment's teacher is a service, and by trajectory
    why one could not be scored; its other samples are left out with it.

    teacher_of: the service that scores an environment's samples; None where none does.
    """

    async def one(sample: TrainSample) -> TrainSample | ModelFault:
        teacher = teacher_of(sample.env)
        if teacher is None:
            return sample
        try:
            # No sample is like another one: an answer that is kept would be asked for by nobody.
            answer = await teacher.ask(ChatRequest((), token_ids=sample.token_ids, keep=False))
        except ModelFault as fault:
            return fault
        every = json.loads(answer.text)["logprobs"]
        return replace(sample, teacher_logprobs=tuple(compress(every, sample.loss_mask[1:])))

    scored = await asyncio.gather(*map(one, samples))
    faults = {
        sample.trajectory or sample.id: str(found)
        for sample, found in zip(samples, scored, strict=True)
        if isinstance(found, ModelFault)
    }
    kept = [
        one
        for one in scored
        if isinstance(one, TrainSample) and (one.trajectory or one.id) not in faults
    ]
    return kept, faults
