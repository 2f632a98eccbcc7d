"""What peers say to each other and the pure machines that say it. Imports no trio, socket, time, os or random state."""
