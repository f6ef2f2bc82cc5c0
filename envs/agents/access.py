"""An agent's access to the policy: what an episode hands to the agent that plays it.

An agent is a program that asks a model by OpenAI's or Anthropic's API and acts by itself. An environment with
a `served_model` is played by one: its `play` runs the agent, and behind the access is the policy.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelAccess:
    """Where the policy is for one episode: `ModelAccess("http://127.0.0.1:4021", "sk-…", "policy")`.

    url: without `/v1`. key: the episode's secret, the API key. model: the policy's name there. max_turns,
    max_tokens: where the episode ends, for an agent that has limits of its own; 0 where it is not known.
    """

    url: str
    key: str = field(repr=False)
    model: str
    max_turns: int = 0
    max_tokens: int = 0

    @property
    def variables(self) -> dict[str, str]:
        """As the clients' libraries and most agents take it from their environment."""
        return {
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "OPENAI_API_BASE": f"{self.url}/v1",
            "OPENAI_API_KEY": self.key,
            "OPENAI_MODEL": self.model,
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": self.key,
            "ANTHROPIC_MODEL": self.model,
        }
