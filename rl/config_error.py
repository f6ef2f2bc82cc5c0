"""`ConfigError`, apart from what raises it: `dorado --help` needs the name and not pydantic."""


class ConfigError(Exception):
    """A setting that cannot be; the message is one sentence for the user."""
