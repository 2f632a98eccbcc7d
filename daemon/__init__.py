"""The process: the only place that knows every other package, and the only one that owns sockets, clocks and files."""
