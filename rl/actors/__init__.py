"""The classes that live in Ray actors, and the clients that call them."""
