"""The planted environment that is refused when its class is made, and its file with it."""

from envs.builtin.calculator import Calculator
from envs.tool import tool


class UntypedTool(Calculator):
    """A tool whose argument could be anything."""

    @tool
    async def add(self, a: int, b) -> int:
        """a plus b"""
        return a + b
