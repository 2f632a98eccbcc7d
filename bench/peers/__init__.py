"""The sides of the RPC benchmark: each module is a program with two roles, a server and a caller that measures."""
