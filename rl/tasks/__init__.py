"""Which environment plays next, with which task: mixture, curriculum and circuit breakers. Knows no Ray."""
