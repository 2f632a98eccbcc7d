"""How peers hand files to each other by content hash: manifests, messages, and the machine that fetches. Touches no file."""
