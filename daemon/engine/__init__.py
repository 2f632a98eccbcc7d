"""Engines: what runs the model. One interface; implementations speak OpenAI's HTTP API to a supervised child or to a URL."""
