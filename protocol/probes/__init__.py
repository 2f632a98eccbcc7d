"""Questions whose answers the asker knows, made to look like any other: tasks, checks, and what rounds show by them.

Pure. Whom to probe and when is the daemon's business (`daemon/probing.py`).
"""
