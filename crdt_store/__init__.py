"""What the mesh remembers: signed claims, their logs, merge, forks, sync and storage."""
