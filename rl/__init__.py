"""The run: loop, actors, configuration, command line, records."""
