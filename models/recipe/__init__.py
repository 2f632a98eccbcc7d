"""The recipe of the seven shipped tiny models: data, training, conversion, measurement. Nothing in the daemon imports it."""
