"""What a person can set: the fields with their units and trades, where values come from, and what makes them valid."""

from daemon.config.fields import (
    ApiConfig,
    Config,
    EngineConfig,
    LimitsConfig,
    LogConfig,
    PatienceConfig,
    RelayConfig,
    RoundConfig,
    VerifyConfig,
)
from daemon.config.layers import ConfigError, Loaded, Origin, load, masked

__all__ = [
    "ApiConfig",
    "Config",
    "ConfigError",
    "EngineConfig",
    "LimitsConfig",
    "Loaded",
    "LogConfig",
    "Origin",
    "PatienceConfig",
    "RelayConfig",
    "RoundConfig",
    "VerifyConfig",
    "load",
    "masked",
]
