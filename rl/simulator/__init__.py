"""A discrete-event model of a run, on the scheduler of the live system."""
