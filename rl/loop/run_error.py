"""`RunError`: raised by every part of a run that cannot go on."""


class RunError(Exception):
    """The run cannot go on; the message is one sentence for the user."""


class Collapsed(RunError):
    """The guard has ended the run: its last checkpoint is of a policy that has collapsed."""
