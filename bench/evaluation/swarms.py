"""The four swarms of bench/data/README.md, by the names of their models. Decides nothing."""

LEFT_OUT = "DeepSeek-Coder-V2"

SWARMS: dict[str, tuple[str, ...]] = {
    "S1": (
        "Meta-Llama-3-70B",
        "Qwen1.5-110B",
        "jamba-1.5-large",
        "Qwen1.5-72B-Chat",
        "Meta-Llama-3_1-8B-Instruct",
        "Mixtral-8x7B-Instruct-v0.1",
        "mathstral-7B",
    ),
    "S2": (
        "Meta-Llama-3_1-70B-Instruct",
        "Mistral-7B-Instruct-v0.2",
        "Qwen1.5-7B-Chat",
        "Yi-6b-Chat",
        "gemma-7b",
        "Meta-Llama-3-8B",
        "Llama-2-13b-hf",
    ),
    "S3": (
        "gemini-1.5-pro-002",
        "gemini-1.5-flash-002",
        "Meta-Llama-3_1-70B-Instruct",
        "Meta-Llama-3-70B",
        "Qwen1.5-110B",
        "jamba-1.5-large",
        "Qwen1.5-72B-Chat",
    ),
}
"""S4 is every model of the file but LEFT_OUT."""

TOLERANCE = {"S1": 0.5, "S2": 0.5, "S3": 0.5, "S4": 1.5}
"""Points by which the chosen arm may stay below the better of majority and best single member, at 50 gold questions."""
